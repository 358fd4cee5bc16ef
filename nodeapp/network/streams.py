"""One libp2p stream for asyncio: framed reads and writes; its other side is pump.py, on trio.

Rules: bytes cross in batches and under credits, so a reader that stops reading stops the peer
and never grows our memory; end of stream and errors cross as items. py-libp2p 0.8.1 resets a
stream whose window stayed at zero for 5 s, so protocols above need credits of their own.
End of stream is not success: what was under way to it is lost when the connection is, so
protocols end by a frame.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from nodeapp.core.errors import NodeError, ProtocolViolation, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.network.bridge import Bridge
from nodeapp.network.pump import RETURN_BYTES, NetStream, Pump
from nodeapp.wire.framing import FRAME_MAX_BYTES, FrameDecoder, encode_frame

WRITE_LIMIT_BYTES: Final = 256 * 1024
"""Accepted and not yet sent, per stream; the last frame may exceed it."""


class Stream:
    """The asyncio side. One task reads; any number may write, frames stay whole."""

    def __init__(
        self, bridge: Bridge, net: NetStream, peer_id: PeerId, protocol_id: str, address: str = ""
    ) -> None:
        """Built on the trio thread, which then runs `pump`."""
        self._peer_id = peer_id
        self._protocol_id = protocol_id
        self._address = address
        self._bridge = bridge
        self._inbox = bytearray()
        self._taken_bytes = 0
        self._unsent_bytes = 0
        self._decoder = FrameDecoder()
        self._is_closing = False
        self._has_eof = False
        self._failure: NodeError | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._sent_all = asyncio.Event()
        self._over = asyncio.Event()
        self._pump = Pump(self, bridge, net)

    @property
    def remote_peer_id(self) -> PeerId:
        """Proven by the noise handshake of the connection."""
        return self._peer_id

    @property
    def remote_address(self) -> str:
        """IP address of the other end, "" when it is not known."""
        return self._address

    @property
    def protocol_id(self) -> str:
        """The id both sides agreed on."""
        return self._protocol_id

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._is_closing

    @property
    def is_over(self) -> bool:
        """Whether both directions have ended and nothing of the stream is left in libp2p."""
        return self._over.is_set()

    async def read_frame(
        self, max_bytes: int = FRAME_MAX_BYTES, deadline_seconds: float = math.inf
    ) -> bytes | None:
        """Wait for the next frame. Cancelling it loses nothing.

        Args:
            max_bytes: cap of the frame's body; larger resets the stream.
            deadline_seconds: longest wait.
        Returns:
            The frame's body, or None when the peer closed its direction.
        Raises:
            ProtocolViolation: over the cap, or not our framing.
            Unavailable: deadline passed, stream reset, connection lost, end inside a frame.
        """
        try:
            async with asyncio.timeout(None if deadline_seconds == math.inf else deadline_seconds):
                while True:
                    frame = self._next_frame(max_bytes)
                    if frame is not None or self._is_at_end():
                        return frame
                    self._readable.clear()
                    await self._readable.wait()
        except TimeoutError as error:
            raise Unavailable(
                f"no frame from peer {self._peer_id} in {deadline_seconds:g} s"
            ) from error

    async def read_some(self) -> bytes:
        """Wait for bytes after the frames read so far; whoever passes them on knows no frames.

        Returns:
            At least one byte, or b"" when the peer closed its direction.
        Raises:
            Unavailable: stream reset, connection lost.
        """
        while True:
            if self._inbox:
                self._refill()
            taken = self._decoder.take()
            if taken or self._is_at_end():
                return taken
            self._readable.clear()
            await self._readable.wait()

    async def write_some(self, chunk: bytes, deadline_seconds: float = 30.0) -> None:
        """Accept bytes as they are for sending; else as `write_frame`."""
        await self._write(chunk, deadline_seconds)

    async def write_frame(self, payload: bytes, deadline_seconds: float = 30.0) -> None:
        """Accept a frame for sending; waits while WRITE_LIMIT_BYTES are on their way.

        Returning does not mean the peer has it: that takes an answer of the peer.

        Args:
            payload: the frame's body.
            deadline_seconds: longest wait for room.
        Raises:
            Unavailable: stream reset or closed, connection lost, deadline passed.
        """
        await self._write(encode_frame(payload), deadline_seconds)

    async def _write(self, chunk: bytes, deadline_seconds: float) -> None:
        if self._unsent_bytes >= WRITE_LIMIT_BYTES:
            await self._wait_for_room(deadline_seconds)
        if self._failure is not None:
            raise self._failure
        if self._is_closing:
            raise Unavailable(f"stream to peer {self._peer_id} is closed for writing")
        self._unsent_bytes += len(chunk)
        if self._pump.outbox.put(chunk):
            self._bridge.post(self._pump.send)

    async def _wait_for_room(self, deadline_seconds: float) -> None:
        try:
            async with asyncio.timeout(deadline_seconds):
                while self._unsent_bytes >= WRITE_LIMIT_BYTES and self._failure is None:
                    self._writable.clear()
                    await self._writable.wait()
        except TimeoutError as error:
            raise Unavailable(
                f"peer {self._peer_id} took nothing for {deadline_seconds:g} s"
            ) from error

    async def close(self) -> None:
        """Send what was written, then end our direction; reading goes on until the peer ends its.

        Raises:
            Unavailable: what was written could not be sent.
        """
        if not self._is_closing:
            self._is_closing = True
            self._post(self._pump.ask_close)
        await self._sent_all.wait()
        if self._failure is not None:
            raise self._failure

    async def reset(self) -> None:
        """End both directions at once; the peer sees a reset and what was under way is lost."""
        self.abandon()
        await self._over.wait()

    def abandon(self) -> None:
        """`reset` without waiting for it, for code that may not await."""
        if not self._over.is_set():
            self._fail(Unavailable(f"stream to peer {self._peer_id} was reset here"))
            self._post(self._pump.scope.cancel)

    async def pump(self) -> None:
        """Trio side: carry bytes until the stream is over."""
        await self._pump.run()

    def receive(self) -> None:
        """Loop side of the pump: bytes came."""
        self._inbox += self._pump.inbox.take()
        self._readable.set()

    def return_sent(self, sent_bytes: int) -> None:
        """Loop side of the pump: so many bytes left."""
        self._unsent_bytes -= sent_bytes
        self._writable.set()

    def end_reading(self) -> None:
        """Loop side of the pump: the peer ended its direction, after all its bytes."""
        self._has_eof = True
        self._readable.set()

    def end_writing(self) -> None:
        """Loop side of the pump: our direction is ended, everything was sent."""
        self._sent_all.set()

    def end(self, failure: NodeError | None) -> None:
        """Loop side of the pump: nothing is left of the stream."""
        if failure is not None:
            self._fail(failure)
        self._has_eof = True
        self._over.set()
        self._sent_all.set()
        self._readable.set()

    def _next_frame(self, max_bytes: int) -> bytes | None:
        try:
            frame = self._decoder.next_frame(max_bytes)
            if frame is None and self._inbox:
                self._refill()
                frame = self._decoder.next_frame(max_bytes)
        except ProtocolViolation as violation:
            self._inbox.clear()
            self._decoder = FrameDecoder()
            self.abandon()
            self._failure = violation
            raise
        return frame

    def _refill(self) -> None:
        self._decoder.feed(self._inbox)
        self._taken_bytes += len(self._inbox)
        self._inbox.clear()
        if self._taken_bytes >= RETURN_BYTES:
            self._post(self._pump.grant, self._taken_bytes)
            self._taken_bytes = 0

    def _is_at_end(self) -> bool:
        if self._failure is not None:
            raise self._failure
        if self._has_eof and self._decoder.buffered_bytes:
            raise Unavailable(f"peer {self._peer_id} ended the stream inside a frame")
        return self._has_eof

    def _fail(self, failure: NodeError) -> None:
        # The first failure is the cause; later ones are its echoes.
        self._failure = self._failure or failure
        self._readable.set()
        self._writable.set()

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._bridge.post(callback, *args)
        except Unavailable as failure:
            self.end(failure)
