"""nodeapp/security/sealed.py: opened by one key, altered by none."""

import pytest
from coincurve import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest, TooLarge
from nodeapp.security import sealed
from nodeapp.security.sealed import open_sealed, padded_size, seal

KEY = bytes(range(1, 33))
PUBLIC = PrivateKey(KEY).public_key.format()


def test_a_box_is_the_golden_one():
    import hashlib

    box = seal(b"transcript", PUBLIC, context=b"job 7", ephemeral=bytes(range(2, 34)))
    assert len(box) == 34 + 4096 + 16
    assert hashlib.sha256(box).hexdigest() == GOLDEN_SHA256


@given(st.binary(max_size=5000), st.binary(max_size=50))
def test_what_was_sealed_is_opened_with_key_and_context(data, context):
    assert open_sealed(seal(data, PUBLIC, context=context), KEY, context=context) == data


def test_an_uncompressed_key_is_the_same_recipient():
    uncompressed = PrivateKey(KEY).public_key.format(compressed=False)
    assert open_sealed(seal(b"x", uncompressed), KEY) == b"x"


def test_equal_data_makes_other_boxes():
    assert seal(b"x", PUBLIC) != seal(b"x", PUBLIC)


def test_every_flipped_byte_is_refused():
    box = seal(b"transcript", PUBLIC)
    for position in (*range(100), 2000, len(box) - 17, len(box) - 1):
        bad = bytearray(box)
        bad[position] ^= 1
        with pytest.raises(InvalidRequest):
            open_sealed(bytes(bad), KEY)


def test_another_key_or_context_does_not_open_it():
    box = seal(b"x", PUBLIC, context=b"job 7")
    with pytest.raises(InvalidRequest, match="altered"):
        open_sealed(box, bytes(range(2, 34)), context=b"job 7")
    with pytest.raises(InvalidRequest, match="altered"):
        open_sealed(box, KEY, context=b"job 8")


@given(st.binary(max_size=200))
def test_garbage_is_refused(data):
    with pytest.raises(InvalidRequest):
        open_sealed(data, KEY)


def test_a_recipient_that_is_no_point_is_refused():
    for key in (b"", bytes(33), b"\x02" + b"\xff" * 32):
        with pytest.raises(InvalidRequest):
            seal(b"x", key)


def test_more_than_the_limit_is_not_sealed(monkeypatch):
    monkeypatch.setattr(sealed, "MAX_BYTES", 10)
    with pytest.raises(TooLarge):
        seal(bytes(11), PUBLIC)


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (0, 0),
        (1, 4096),
        (4096, 4096),
        (4097, 8192),
        (80 << 10, 80 << 10),
        ((80 << 10) + 1, 88 << 10),
        ((160 << 10) + 1, 176 << 10),
    ],
)
def test_lengths_are_padded_to_s5_blocks(size, padded):
    assert padded_size(size) == padded


GOLDEN_SHA256 = "32b6fa73f370359fbb36f8742e29b428ae7f3ce21a2dce49d7e0b21134d1eb5d"
