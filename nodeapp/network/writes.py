"""One write a connection for what all its streams have to send; everything here on the trio thread.

py-libp2p 0.8.1 encrypts and sends every yamux frame by itself, after three locks each of which is
a turn of the scheduler; 32 answers that tick together cost 32 noise messages. Here frames gather
while others are added and one task sends them. A frame is never cut by the cancellation of the
stream that wrote it, which would break the connection for all of them.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import trio

from nodeapp.core.errors import Unavailable

HEADER: Final = struct.Struct("!BBHII")
"""Version, type, flags, stream id, length (hashicorp/yamux, spec.md)."""
DATA, WINDOW_UPDATE, PING = 0, 1, 2
MOST_DATA_BYTES: Final = 64 * 1024 - HEADER.size
BATCH_BYTES: Final = 65_519
"""Plain text of one noise message: 65,535 without its tag."""
ROOM_BYTES: Final = 64 * 1024
"""Waiting to be sent; then whoever adds data waits."""
STALL_SECONDS: Final = 15.0
"""A batch that the peer's TCP does not take for so long ends the connection."""


class FrameWriter:
    """Takes the place of `_write_frame` of one py-libp2p yamux connection."""

    def __init__(self, muxed: Any) -> None:  # noqa: ANN401 - untyped library
        """Frames wait until `run` sends them."""
        self._muxed = muxed
        self._frames: list[bytes] = []
        self._added_bytes = self._sent_bytes = 0
        self._failure: Exception | None = None
        self._filled = trio.Event()
        self._progress = trio.Event()

    async def write(self, frame: bytes) -> None:
        """What the library calls: in order; data waits for room, the end of a stream until it left.

        Raises:
            ConnectionClosedError: of the library, whose callers know it.
        """
        self._add(frame)
        mine = self._added_bytes
        _version, kind, flags, _stream, _length = HEADER.unpack_from(frame)
        if flags or kind not in (WINDOW_UPDATE, PING):
            ahead = 0 if flags or kind != DATA else ROOM_BYTES
            while self._sent_bytes + ahead < mine and self._failure is None:
                await self._progress.wait()
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure

    def try_data(self, stream: Any, data: bytes) -> bool:  # noqa: ANN401 - untyped library
        """Add one data frame without waiting; False: use the stream's own `write`.

        Only where nobody is inside that `write`: the frames of a stream keep their order.
        """
        size = len(data)
        if (
            size > min(stream.send_window, MOST_DATA_BYTES)
            or stream.send_closed
            or stream.closed
            or self._failure is not None
            or self._added_bytes - self._sent_bytes >= ROOM_BYTES
        ):
            return False
        stream.send_window -= size
        self._add(HEADER.pack(0, DATA, 0, stream.stream_id, size) + data)
        return True

    async def run(self) -> None:
        """Send until the connection ends; whoever waits then is told."""
        from libp2p.io.exceptions import ConnectionClosedError

        reason = "connection has ended"
        try:
            with trio.fail_after(STALL_SECONDS):
                async with self._muxed._write_lock:  # noqa: SLF001 - see share_writes
                    pass
            while True:
                if not self._frames:
                    await self._filled.wait()
                await self._send(self._take())
        except Exception as error:  # noqa: BLE001 - 0.8.1 raises at will; told to the writers
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._failure = ConnectionClosedError(reason, transport="tcp")
            self._frames.clear()
            self._progress.set()
        await self._muxed.close()

    def _add(self, frame: bytes) -> None:
        if self._failure is None:
            self._frames.append(frame)
            self._added_bytes += len(frame)
            self._filled.set()

    def _take(self) -> bytes:
        count = size = 0
        for frame in self._frames:
            if count and size + len(frame) > BATCH_BYTES:
                break
            count, size = count + 1, size + len(frame)
        batch = b"".join(self._frames[:count])
        del self._frames[:count]
        if not self._frames:
            self._filled = trio.Event()
        return batch

    async def _send(self, batch: bytes) -> None:
        with trio.move_on_after(STALL_SECONDS) as scope:
            await self._muxed.secured_conn.write(batch)
        if scope.cancelled_caught:
            raise Unavailable(f"peer took nothing for {STALL_SECONDS:g} s")
        self._sent_bytes += len(batch)
        self._progress.set()
        self._progress = trio.Event()


def share_writes(muxed: Any) -> None:  # noqa: ANN401 - untyped library
    """Have a connection that is up send through a FrameWriter; others than yamux stay as they are.

    Its task lives in the connection's nursery and ends with it. It begins after whoever is inside
    the library's own method, whose lock is free for good then: two at once would break the cipher.
    """
    nursery = getattr(muxed, "_nursery", None)
    if nursery is None or not hasattr(muxed, "_write_frame"):
        return
    writer = FrameWriter(muxed)
    muxed._write_frame = writer.write  # noqa: SLF001 - there is no public place for it
    nursery.start_soon(writer.run)


def writer_of(muxed: Any) -> FrameWriter | None:  # noqa: ANN401 - untyped library
    """The writer `share_writes` gave to the connection."""
    owner = getattr(getattr(muxed, "_write_frame", None), "__self__", None)
    return owner if isinstance(owner, FrameWriter) else None
