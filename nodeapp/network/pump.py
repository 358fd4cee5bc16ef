"""The trio side of a stream: carries bytes between the library and the asyncio side, streams.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.network.bridge import Bridge, wrapped
from nodeapp.network.mailbox import Mailbox
from nodeapp.network.writes import writer_of

if TYPE_CHECKING:
    from nodeapp.network.streams import Stream

READ_CREDIT_BYTES: Final = 256 * 1024
"""Received and not yet taken by the reader, per stream; one read may exceed it once."""
RETURN_BYTES: Final = 64 * 1024
"""Credits go back in batches of this size, not per frame."""
READ_BYTES: Final = 64 * 1024
WRITE_STALL_SECONDS: Final = 15.0
"""A batch the connection does not take for so long ends the stream (frozen peer)."""
LINGER_SECONDS: Final = 60.0
"""Longest silence of the peer after our close(); then the stream is reset."""
RESET_SECONDS: Final = 2.0


class NetStream(Protocol):
    """What is used of py-libp2p's stream, on the trio thread."""

    muxed_stream: Any

    async def read(self, n: int | None = None) -> bytes:
        """At least one byte, at most n; raises StreamEOF, StreamReset, StreamError."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when the connection took all of it."""
        ...

    async def close(self) -> None:
        """Both directions, and release of its slot."""
        ...

    async def close_write(self) -> None:
        """Our direction only."""
        ...

    async def reset(self) -> None:
        """Both directions at once, buffered data lost."""
        ...


class Pump:
    """One task reads, one writes, a cancelled scope resets."""

    def __init__(self, stream: Stream, bridge: Bridge, net: NetStream) -> None:
        self.inbox = Mailbox()
        self.outbox = Mailbox()
        self.scope = trio.CancelScope()
        self._stream = stream
        self._bridge = bridge
        self._net = net
        self._credit_bytes = READ_CREDIT_BYTES
        self._granted = trio.Event()
        self._awake = trio.Event()
        self._close_asked = False
        self._failure: NodeError | None = None
        self._unsent = b""
        """Taken out of the outbox and not yet written."""
        self._is_writing = False
        self._returnable_bytes = 0

    async def run(self) -> None:
        """Until both directions have ended, one failed, or the scope is cancelled."""
        whole = False
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, "read", self._read)
                    nursery.start_soon(self._guard, "write", self._write)
                whole = self._failure is None
        finally:
            await self._finish(whole=whole)

    def grant(self, credit_bytes: int) -> None:
        """The reader took so many bytes."""
        self._credit_bytes += credit_bytes
        self._granted.set()

    def send(self) -> None:
        """The outbox has bytes: into the connection's next write when it is idle, else by `run`."""
        if not (self._is_writing or self._unsent or self._close_asked or self._failure):
            batch = bytes(self.outbox.take())
            writer = writer_of(self._net.muxed_stream.conn)
            if writer is not None and writer.try_data(self._net.muxed_stream, batch):
                self._return(len(batch))
                return
            self._unsent = batch
        self._awake.set()

    def ask_close(self) -> None:
        """End our direction once the outbox is empty."""
        self._close_asked = True
        self._awake.set()

    async def _guard(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - 0.8.1 raises at will; it ends this stream only
            self._failure = wrapped(
                f"{what} on stream to peer {self._stream.remote_peer_id}", error
            )
            self.scope.cancel()

    async def _read(self) -> None:
        from libp2p.network.stream.exceptions import StreamEOF, StreamReset

        while True:
            while self._credit_bytes <= 0:
                self._granted = trio.Event()
                await self._granted.wait()
            try:
                chunk = await self._net.read(READ_BYTES)
            except StreamEOF as error:
                # 0.8.1 forgets a stream that was reset before its reader looks, and calls that
                # an end; a lost connection marks its streams as reset, too.
                if getattr(self._net.muxed_stream, "reset_received", False):
                    raise StreamReset from error
                chunk = b""
            if not chunk:
                self._bridge.to_loop(self._stream.end_reading)
                return
            if self._close_asked:
                self.scope.deadline = trio.current_time() + LINGER_SECONDS
            self._credit_bytes -= len(chunk)
            if self.inbox.put(chunk):
                self._bridge.to_loop(self._stream.receive)

    async def _write(self) -> None:
        while True:
            batch = self._unsent or bytes(self.outbox.take())
            if batch:
                self._unsent, self._is_writing = b"", True
                with trio.fail_after(WRITE_STALL_SECONDS):
                    await self._net.write(batch)
                self._is_writing = False
                self._return(len(batch))
            elif self._close_asked:
                with trio.fail_after(WRITE_STALL_SECONDS):
                    await self._net.close_write()
                self.scope.deadline = trio.current_time() + LINGER_SECONDS
                self._bridge.to_loop(self._stream.end_writing)
                return
            else:
                await self._awake.wait()
                self._awake = trio.Event()

    def _return(self, sent_bytes: int) -> None:
        self._returnable_bytes += sent_bytes
        if self._returnable_bytes >= RETURN_BYTES:
            self._bridge.to_loop(self._stream.return_sent, self._returnable_bytes)
            self._returnable_bytes = 0

    async def _finish(self, *, whole: bool) -> None:
        failure = self._failure
        if not whole and failure is None:
            failure = Unavailable(f"stream to peer {self._stream.remote_peer_id} was reset")
        try:
            with trio.CancelScope(deadline=trio.current_time() + RESET_SECONDS, shield=True):
                await (self._net.close() if whole else self._net.reset())
        except Exception as error:  # noqa: BLE001 - the stream is over either way
            failure = failure or wrapped("close stream", error)
        finally:
            self._bridge.to_loop(self._stream.end, failure)
