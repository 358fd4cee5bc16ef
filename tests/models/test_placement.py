"""Layers, cells and devices by the model's header and free memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import Unavailable
from nodeapp.inference.gguf import GgufHeader
from nodeapp.inference.gpu import Gpu
from nodeapp.inference.placement import (
    MARGIN_BYTES,
    Needs,
    Placement,
    back_off,
    needed_bytes,
    place,
)

GIB, MIB = 1 << 30, 1 << 20


def header(blocks=32, block_bytes=6 * GIB, other_bytes=GIB // 2, kv_bytes=4096):
    return GgufHeader(
        architecture="llama",
        quantisation="Q4_K_M",
        context_length=8192,
        vocabulary_size=32_000,
        block_count=blocks,
        tensor_count=300,
        size_bytes=block_bytes + other_bytes,
        chat_template="",
        licence="",
        embedding_length=4096,
        block_bytes=block_bytes,
        other_bytes=other_bytes,
        kv_bytes=kv_bytes,
    )


NEEDS = Needs(header(), kv_tokens=8192, least_kv_tokens=4096, batch_tokens=260)
"""6.5 GiB of weights; a gigabyte of cells, or half of that."""


def gpu(free, index=0, total=24 * GIB):
    return Gpu(index, "g", total_bytes=total, free_bytes=free)


def test_without_a_gpu_the_processor_does_it_all():
    assert place(-1, NEEDS, ()) == Placement(0, 8192)
    assert place(20, NEEDS, ()) == Placement(0, 8192)


def test_all_fits_on_the_roomiest_device():
    assert place(-1, NEEDS, (gpu(10 * GIB), gpu(20 * GIB, 1))) == Placement(33, 8192, (1,))


def test_two_devices_share_only_what_fits_on_none():
    found = place(-1, NEEDS, (gpu(7 * GIB, 0, 8 * GIB), gpu(4 * GIB, 1, 8 * GIB)))
    assert (found.gpu_layers, found.kv_tokens, found.devices) == (33, 8192, (0, 1))
    assert sum(found.split) == pytest.approx(1.0)
    assert found.split[0] > found.split[1] > 0


def test_cells_are_given_up_before_layers():
    free = 7 * GIB + MARGIN_BYTES + 250 * MIB
    found = place(-1, NEEDS, (gpu(free, total=8 * GIB),))
    assert found == Placement(33, 4096, (0,))


def test_what_does_not_fit_stays_with_the_processor():
    found = place(-1, NEEDS, (gpu(4 * GIB, total=8 * GIB),))
    assert found.kv_tokens == 4096
    assert 12 <= found.gpu_layers <= 17
    assert place(-1, NEEDS, (gpu(GIB // 2),)) == Placement(0, 8192)


def test_the_operators_number_is_taken_as_it_is():
    assert place(0, NEEDS, (gpu(20 * GIB),)) == Placement(0, 8192)
    assert place(10, NEEDS, (gpu(GIB),)).gpu_layers == 10
    assert place(999, NEEDS, (gpu(20 * GIB),)).gpu_layers == 33


def test_a_device_that_lies_about_free_memory_is_not_believed():
    assert place(-1, NEEDS, (gpu(1 << 50, total=4 * GIB),)).gpu_layers < 33


@settings(max_examples=200, deadline=None)
@given(
    frees=st.lists(st.integers(0, 30 * GIB), max_size=4),
    block_bytes=st.integers(1, 60 * GIB),
    kv_tokens=st.integers(256, 1 << 17),
)
def test_what_is_placed_fits(frees, block_bytes, kv_tokens):
    needs = Needs(header(block_bytes=block_bytes), kv_tokens, min(kv_tokens, 4096), 260)
    gpus = [gpu(free, index, 30 * GIB) for index, free in enumerate(frees)]
    found = place(-1, needs, gpus)
    assert 0 <= found.gpu_layers <= 33
    assert found.kv_tokens in (kv_tokens, needs.least_kv_tokens)
    used = sum(gpus[index].free_bytes for index in found.devices)
    weights = block_bytes * min(found.gpu_layers, 32) // 32
    cells = min(found.gpu_layers, 32) * found.kv_tokens * 4096
    assert weights + cells <= used
    assert len(found.split) in (0, len(found.devices))


def test_backing_off_ends_with_the_processor_alone():
    tried, steps = place(-1, NEEDS, (gpu(20 * GIB),)), []
    while tried.gpu_layers:
        tried = back_off(tried, NEEDS)
        steps.append((tried.gpu_layers, tried.kv_tokens))
    assert steps[0] == (33, 4096)
    assert steps[-1] == (0, 8192)
    assert len(steps) < 20
    with pytest.raises(Unavailable, match="without a gpu either"):
        back_off(tried, NEEDS)


def test_the_estimate_for_the_whole_is_near_the_sum_of_its_parts():
    assert 7 * GIB < needed_bytes(NEEDS) < 7.3 * GIB
