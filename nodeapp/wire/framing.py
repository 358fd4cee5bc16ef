"""Varint-length-prefixed frames: unsigned LEB128 length, then that many bytes.

Pure. The length is checked before a byte of the body is buffered for it, so a peer cannot make
us reserve more than the caller's cap. Source: multiformats unsigned-varint (minimal encoding).
"""

from __future__ import annotations

from typing import Final

from nodeapp.core.errors import ProtocolViolation

FRAME_MAX_BYTES: Final = 64 * 1024
"""Cap of a streaming frame's body, bytes."""
PROMPT_FRAME_MAX_BYTES: Final = 1024 * 1024
"""Cap of the largest frame any protocol of ours may allow (prompts, proofs), bytes."""
_LENGTH_MAX_BYTES: Final = 5


def encode_frame(payload: bytes) -> bytes:
    """Prefix a body with its length.

    Args:
        payload: 0 to PROMPT_FRAME_MAX_BYTES bytes.
    Raises:
        ValueError: the body is larger than any peer would accept (a bug of the caller).
    """
    if len(payload) > PROMPT_FRAME_MAX_BYTES:
        raise ValueError(f"frame of {len(payload)} bytes, cap {PROMPT_FRAME_MAX_BYTES}")
    return encode_length(len(payload)) + payload


def encode_length(length: int) -> bytes:
    """Unsigned LEB128 of 0 <= length < 2**35, one to five bytes."""
    encoded = bytearray()
    while length >= 0x80:
        encoded.append(0x80 | (length & 0x7F))
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


class FrameDecoder:
    """Bytes in by `feed`, frames out by `next_frame`; keeps a partial frame between calls.

    Not thread-safe. After a ProtocolViolation the position in the stream is lost: drop the peer.
    """

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed and not yet given out as frames."""
        return len(self._buffer) - self._start

    def feed(self, received: bytes | bytearray) -> None:
        """Append received bytes, in order."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += received

    def take(self) -> bytes:
        """Everything that was fed after the last frame, as it is."""
        taken = bytes(memoryview(self._buffer)[self._start :])
        self._buffer, self._start = bytearray(), 0
        return taken

    def next_frame(self, max_bytes: int) -> bytes | None:
        """Take the next whole frame.

        Args:
            max_bytes: cap of the body for this frame.
        Returns:
            The body (may be empty), or None until more bytes are fed.
        Raises:
            ProtocolViolation: stated length over the cap, or not a minimal varint.
        """
        header = self._read_length(max_bytes)
        if header is None:
            return None
        length, body_start = header
        body_end = body_start + length
        if len(self._buffer) < body_end:
            return None
        frame = bytes(memoryview(self._buffer)[body_start:body_end])
        self._start = body_end
        return frame

    def _read_length(self, max_bytes: int) -> tuple[int, int] | None:
        length = 0
        available = self._buffer[self._start : self._start + _LENGTH_MAX_BYTES]
        for index, byte in enumerate(available):
            length |= (byte & 0x7F) << (7 * index)
            if length > max_bytes:
                raise ProtocolViolation(f"frame of {length} bytes or more, cap {max_bytes}")
            if byte < 0x80:
                if byte == 0 and index > 0:
                    raise ProtocolViolation("frame length is not a minimal varint")
                return length, self._start + index + 1
        if len(available) == _LENGTH_MAX_BYTES:
            raise ProtocolViolation(f"frame length is longer than {_LENGTH_MAX_BYTES} bytes")
        return None
