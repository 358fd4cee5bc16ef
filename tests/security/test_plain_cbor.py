"""Nothing of a stranger's CBOR reaches the decoder but plain kinds inside bounds."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest
from nodeapp.wire.capability import MAX_RECORD_BYTES, decode_record
from nodeapp.wire.plain_cbor import MAX_DEPTH, decode_plain
from nodeapp.wire.proof_envelope import decode_envelope
from nodeapp.wire.transcript import decode_transcript

DECODERS = (decode_record, decode_transcript, decode_envelope)
BOMBS = {
    "nested arrays": b"\x81" * 5000 + b"\x00",
    "nested maps": b"\xa1\x00" * 2000 + b"\x00",
    "a long array that is not there": b"\x9b" + b"\xff" * 8,
    "a long map that is not there": b"\xbb" + b"\x7f" * 8,
    "a long text that is not there": b"\x7b" + b"\x7f" * 8,
    "an array without end": b"\x9f\x00\x00",
    "text in pieces": b"\x7f\x61a\xff",
    "a decimal of a huge exponent": b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "a big number": b"\xc2\x58\x20" + b"\xff" * 32,
    "a regular expression": b"\xd8\x23\x67(a+)+b$",
    "a shared reference to itself": b"\xd8\x1c\x81\xd8\x1d\x00",
    "an email": b"\xd8\x24\x61a",
    "a date": b"\xc0\x61a",
    "a negative number": b"\x20",
    "a float": b"\xfb" + bytes(8),
    "none": b"\xf6",
    "a reserved head": b"\x1c",
    "many empty arrays": b"\x99\x1f\x00" + b"\x80" * 0x1F00,
    "nothing": b"",
    "two items": b"\x01\x01",
    "a head that is cut off": b"\x19\x01",
}

plain = st.recursive(
    st.integers(0, 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def depth(value):
    members = value.values() if isinstance(value, dict) else value
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth, members), default=0)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
def test_a_bomb_is_an_invalid_request_for_every_decoder(decode, bomb):
    with pytest.raises(InvalidRequest):
        decode(bomb)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_before_the_decoder_sees_it(bomb, monkeypatch):
    monkeypatch.setattr(cbor2, "loads", lambda _: pytest.fail("decoded"))
    with pytest.raises(InvalidRequest, match="thing"):
        decode_plain(bomb, "thing", max_items=1000)


@settings(max_examples=150, deadline=None)
@given(value=plain)
def test_property_plain_values_come_back(value):
    if depth(value) < MAX_DEPTH:
        assert decode_plain(cbor2.dumps(value), "thing", max_items=10_000) == value


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_property_garbage_is_a_value_or_an_invalid_request(data):
    try:
        decode_plain(data, "thing", max_items=100)
    except InvalidRequest:
        return


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
def test_property_garbage_is_refused_by_every_decoder(decode, data):
    with pytest.raises(InvalidRequest):
        decode(data)


def test_items_are_counted_with_their_containers():
    assert decode_plain(b"\x82\x01\x02", "thing", max_items=3) == [1, 2]
    with pytest.raises(InvalidRequest, match="over 2 items"):
        decode_plain(b"\x82\x01\x02", "thing", max_items=2)


def test_a_text_that_is_not_utf8_is_refused():
    with pytest.raises(InvalidRequest, match="thing is malformed"):
        decode_plain(b"\x61\xff", "thing", max_items=3)


def test_a_record_over_its_bytes_is_not_looked_at():
    with pytest.raises(InvalidRequest, match=f"{MAX_RECORD_BYTES} allowed"):
        decode_record(b"\x80" * (MAX_RECORD_BYTES + 1))
