"""GPU inventory through a fake driver, and the layers that fit."""

from __future__ import annotations

import pytest

from nodeapp.inference.gpu import Gpu, layers_that_fit
from nodeapp.inference.nvml import NvmlInventory
from tests.fakes.nvml import FakeNvml

GIB = 1 << 30


def test_devices_are_listed_with_memory():
    gpus = NvmlInventory(FakeNvml(devices=2)).devices()
    assert [gpu.index for gpu in gpus] == [0, 1]
    assert gpus[0] == Gpu(0, "Fake GPU", 24 * GIB, 20 * GIB, 41, 7)


@pytest.mark.parametrize("broken", ["init", "count"])
def test_no_driver_is_no_gpu(broken):
    assert NvmlInventory(FakeNvml(devices=1, broken=broken)).devices() == ()


def test_a_device_that_fails_is_left_out():
    gpus = NvmlInventory(FakeNvml(devices=3, lost=1)).devices()
    assert [gpu.index for gpu in gpus] == [0, 2]


def test_this_machine_answers_without_error():
    assert isinstance(NvmlInventory().devices(), tuple)


def gpu(free):
    return Gpu(0, "g", 24 * GIB, free, 0, 0)


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        (-1, (), 0),
        (-1, (gpu(20 * GIB),), 33),
        (-1, (gpu(5 * GIB),), 17),
        (-1, (gpu(0),), 0),
        (10, (), 10),
        (99, (), 33),
    ],
)
def test_layers_that_fit(asked, gpus, expected):
    layers = layers_that_fit(asked, blocks=32, model_bytes=int(6.25 * GIB), kv_bytes=GIB, gpus=gpus)
    assert layers == expected
