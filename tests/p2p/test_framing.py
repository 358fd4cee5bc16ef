import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import ProtocolViolation
from nodeapp.wire.framing import (
    FRAME_MAX_BYTES,
    PROMPT_FRAME_MAX_BYTES,
    FrameDecoder,
    encode_frame,
    encode_length,
)

payloads = st.lists(st.binary(max_size=300), max_size=12)


def decode_all(decoder, max_bytes=FRAME_MAX_BYTES):
    frames = []
    while (frame := decoder.next_frame(max_bytes)) is not None:
        frames.append(frame)
    return frames


@given(payloads, st.integers(min_value=1, max_value=700))
def test_frames_come_back_whole_however_the_bytes_are_cut(sent, cut):
    wire = b"".join(map(encode_frame, sent))
    decoder, received = FrameDecoder(), []
    for start in range(0, len(wire), cut):
        decoder.feed(wire[start : start + cut])
        received += decode_all(decoder)
    assert received == sent
    assert decoder.buffered_bytes == 0


@given(st.binary(max_size=400), st.integers(min_value=0, max_value=64))
def test_garbage_gives_frames_or_a_protocol_violation_and_nothing_else(garbage, cap):
    decoder = FrameDecoder()
    decoder.feed(garbage)
    try:
        frames = decode_all(decoder, cap)
    except ProtocolViolation:
        return
    assert all(len(frame) <= cap for frame in frames)


@given(st.integers(min_value=0, max_value=PROMPT_FRAME_MAX_BYTES))
def test_a_length_is_a_minimal_varint(length):
    encoded = encode_length(length)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == length
    assert length == 0 or encoded[-1] != 0


def test_a_length_over_the_cap_is_refused_before_the_body_comes():
    decoder = FrameDecoder()
    decoder.feed(encode_length(FRAME_MAX_BYTES + 1))
    with pytest.raises(ProtocolViolation, match="cap 65536"):
        decoder.next_frame(FRAME_MAX_BYTES)


@pytest.mark.parametrize("header", [b"\x80\x00", b"\x80\x80\x80\x80\x80", b"\xff" * 10])
def test_an_odd_length_is_refused(header):
    decoder = FrameDecoder()
    decoder.feed(header)
    with pytest.raises(ProtocolViolation):
        decoder.next_frame(1 << 40)


def test_a_frame_nobody_would_accept_is_not_encoded():
    with pytest.raises(ValueError, match="cap"):
        encode_frame(bytes(PROMPT_FRAME_MAX_BYTES + 1))
