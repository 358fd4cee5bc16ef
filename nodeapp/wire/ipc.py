"""What every process-to-process call shares: error body, readiness, stream frames.

Bodies are MessagePack (msgspec). A stream is chunked frames: kind (1 byte), length (4 bytes,
big endian), body. A stream that ends without an END frame was cut off by a crash.
"""

from __future__ import annotations

import msgspec

from nodeapp.core.errors import NodeError, ProtocolViolation, from_code

FRAME_MESSAGE = 0
FRAME_ERROR = 1
FRAME_END = 2
FRAME_HEADER_BYTES = 5
MAX_FRAME_BYTES = 8 << 20

REQUEST_ID_HEADER = "X-Request-Id"
DEADLINE_HEADER = "X-Deadline-Ms"
CONTENT_TYPE = "application/msgpack"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every process-to-process body."""


class Empty(Message, frozen=True):
    """Nothing to say."""


class ErrorBody(Message, frozen=True):
    """A NodeError on its way between processes."""

    code: str
    message: str
    retry_after_seconds: float | None = None


class Readiness(Message, frozen=True):
    """Answer of /readyz."""

    process: str
    ready: bool
    detail: str
    pid: int
    uptime_seconds: float


class Health(Message, frozen=True):
    """Answer of /healthz."""

    process: str
    healthy: bool
    detail: str


def error_body(error: NodeError) -> ErrorBody:
    """Put an error into its wire form."""
    return ErrorBody(error.code, error.message, error.retry_after_seconds)


def error_from_body(body: ErrorBody) -> NodeError:
    """Rebuild the error on the asking side."""
    return from_code(body.code, body.message, body.retry_after_seconds)


def encode_frame(kind: int, body: bytes) -> bytes:
    """One stream frame."""
    return bytes((kind,)) + len(body).to_bytes(4, "big") + body


def decode_frame_header(header: bytes | bytearray) -> tuple[int, int]:
    """Kind and body length of a frame.

    Raises:
        ProtocolViolation: unknown kind or a length over MAX_FRAME_BYTES.
    """
    kind, length = header[0], int.from_bytes(header[1:5], "big")
    if kind not in (FRAME_MESSAGE, FRAME_ERROR, FRAME_END) or length > MAX_FRAME_BYTES:
        raise ProtocolViolation(f"stream frame of kind {kind} and {length} bytes")
    return kind, length


def take_frames(received: bytearray) -> list[tuple[int, bytes]]:
    """Kind and body of every whole frame, taken out of `received`.

    Raises:
        ProtocolViolation: as decode_frame_header.
    """
    frames: list[tuple[int, bytes]] = []
    start, size = 0, len(received)
    while size - start >= FRAME_HEADER_BYTES:
        body = start + FRAME_HEADER_BYTES
        kind, length = decode_frame_header(received[start:body])
        if size - body < length:
            break
        start = body + length
        frames.append((kind, bytes(received[body:start])))
    del received[:start]
    return frames
