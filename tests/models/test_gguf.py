"""The GGUF header check: what is good passes with its facts, what is bad is named."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.inference.gguf import read_header
from tests.fakes import gguf_file as gf


def write(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


def test_a_good_file_states_its_facts(tmp_path):
    header = read_header(write(tmp_path, gf.gguf()))
    assert (header.architecture, header.quantisation) == ("llama", "Q4_1")
    assert (header.context_length, header.vocabulary_size, header.block_count) == (512, 3, 2)
    assert header.tensor_count == 2
    assert header.chat_template == "{{ messages[0].content }}"


def test_the_real_model_passes(model_path):
    header = read_header(model_path)
    assert (header.architecture, header.quantisation) == ("llama", "Q4_1")
    assert (header.context_length, header.vocabulary_size) == (8192, 49152)
    assert (header.embedding_length, header.kv_bytes) == (576, 2 * 3 * (64 + 64))
    assert header.block_bytes + header.other_bytes < model_path.stat().st_size
    assert header.block_bytes > 2 * header.other_bytes
    assert "<|im_start|>" in header.chat_template


def replaced(position, new):
    keys = list(gf.DEFAULT_KEYS)
    keys[position] = new
    return gf.gguf(keys=keys)


def with_tensors(*tensors, **more):
    return gf.gguf(tensors=tensors, **more)


HUGE = struct.pack("<Q", 1 << 62)
BAD = {
    "magic": (gf.gguf(magic=b"GGML"), "magic"),
    "version": (gf.gguf(version=9), "version 9"),
    "key count": (gf.gguf(key_count=1 << 62), "keys, limit"),
    "tensor count": (gf.gguf(tensor_count=1 << 62), "tensors, limit"),
    "key length": (gf.gguf(keys=(HUGE + b"x",)), "key of"),
    "string length": (replaced(0, gf.text("a") + struct.pack("<I", gf.STRING) + HUGE), "value of"),
    "array count": (
        replaced(5, gf.key("tokenizer.ggml.tokens", gf.ARRAY, struct.pack("<I", 8) + HUGE)),
        "items in",
    ),
    "array of arrays": (
        replaced(5, gf.key("t", gf.ARRAY, struct.pack("<IQ", gf.ARRAY, 1))),
        "array of arrays",
    ),
    "string in array": (
        replaced(5, gf.key("t", gf.ARRAY, struct.pack("<IQ", gf.STRING, 1) + HUGE)),
        "string of",
    ),
    "value type": (replaced(1, gf.key("k", 77, b"")), "unknown type 77"),
    "truth value": (replaced(1, gf.key("k", gf.BOOL, b"\x07")), "truth value"),
    "key twice": (replaced(1, gf.string("general.architecture", "llama")), "twice"),
    "key not text": (replaced(1, gf.text(b"\xff\xfe") + struct.pack("<I", 4)), "not UTF-8"),
    "architecture": (replaced(0, gf.string("general.architecture", "evil")), "not served"),
    "no architecture": (replaced(0, gf.string("x", "llama")), "not served"),
    "context": (replaced(2, gf.u32("llama.context_length", 0)), "context_length"),
    "no vocabulary": (replaced(5, gf.strings("t", ())), "tokenizer.ggml.tokens"),
    "alignment": (replaced(1, gf.u32("general.alignment", 24)), "alignment"),
    "alignment 0": (replaced(1, gf.u32("general.alignment", 0)), "alignment"),
    "alignment 2^31": (replaced(1, gf.u32("general.alignment", 1 << 31)), "alignment"),
    "alignment of 64 bits": (
        replaced(1, gf.key("general.alignment", gf.U64, struct.pack("<Q", 1 << 63))),
        "alignment is of type",
    ),
    "width": (replaced(1, gf.u32("llama.embedding_length", 1 << 30)), "embedding_length"),
    "tensor cut off": (gf.gguf(data_bytes=gf.DATA_BYTES - 1), "ends at"),
    "tensor offset": (with_tensors(gf.tensor("a", (32,), 0, 1 << 60)), "ends at"),
    "tensor unaligned": (with_tensors(gf.tensor("a", (32,), 0, 3)), "aligned"),
    "tensor overlap": (
        with_tensors(gf.tensor("a", (32, 2), 0, 0), gf.tensor("b", (32,), 0, 32)),
        "overlaps",
    ),
    "tensor twice": (
        with_tensors(gf.tensor("a", (32,), 0, 0), gf.tensor("a", (32,), 0, 128)),
        "twice",
    ),
    "dimensions": (with_tensors(gf.tensor("a", (1,) * 5, 0, 0)), "5 dimensions"),
    "no dimension": (with_tensors(gf.tensor("a", (), 0, 0)), "0 dimensions"),
    "shape overflow": (with_tensors(gf.tensor("a", (1 << 33, 1 << 33), 0, 0)), "shape"),
    "shape zero": (with_tensors(gf.tensor("a", (0,), 0, 0)), "shape"),
    "tensor type": (with_tensors(gf.tensor("a", (32,), 5, 0)), "unknown type 5"),
    "row not whole": (with_tensors(gf.tensor("a", (31,), 3, 0)), "whole blocks"),
    "tensor name": (with_tensors(gf.tensor("a" * 64, (32,), 0, 0)), "tensor name"),
    "empty": (b"", "shorter"),
    "zeros": (bytes(4096), "magic"),
    "text": (b"not a model at all, just text in a file", "magic"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(tmp_path, name):
    data, expected = BAD[name]
    with pytest.raises(InvalidRequest, match=expected) as caught:
        read_header(write(tmp_path, data))
    assert "m.gguf" in caught.value.message


def test_the_items_of_all_arrays_together_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("nodeapp.inference.gguf.MAX_ITEMS", 5)
    assert read_header(write(tmp_path, gf.gguf())).vocabulary_size == 3
    more = gf.gguf(keys=(*gf.DEFAULT_KEYS, gf.strings("t", ("a", "b", "c"))))
    with pytest.raises(InvalidRequest, match="6 items in all arrays, limit 5"):
        read_header(write(tmp_path, more))


@pytest.mark.parametrize("length", range(24, len(gf.gguf()) - gf.DATA_BYTES, 7))
def test_a_cut_off_header_is_refused(tmp_path, length):
    with pytest.raises(InvalidRequest):
        read_header(write(tmp_path, gf.gguf()[:length]))


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 480), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_changed_bytes_are_refused_or_harmless(tmp_path_factory, changes):
    data = bytearray(gf.gguf())
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.mktemp("g") / "m.gguf"
    path.write_bytes(data)
    with contextlib.suppress(InvalidRequest):
        read_header(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        read_header(tmp_path / "nowhere.gguf")
