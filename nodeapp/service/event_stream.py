"""Server-sent events of an answer to one client, which may be slow, or gone.

Headers go out with the first event, so that a refusal still has its status.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable

from aiohttp import web

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.wire import openai

SEND_BUFFER_BYTES = 16 << 10
"""Of a connection that may be cut off: what is in buffers counts as taken."""


class EventStream:
    """Server-sent events to one client."""

    def __init__(self, request: web.Request, patience_seconds: float | None) -> None:
        self._request = request
        self._patience = patience_seconds
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._is_gone = False
        self._one_at_a_time = asyncio.Lock()
        """Guards the connection: several answers of one reply write to it."""

    async def send(self, events: bytes) -> None:
        """Write events, headers first.

        Raises:
            Unavailable: the client has left, or does not read.
        """
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(self._patience):
                    await self._write(events)
            except ConnectionError as error:
                self._is_gone = True
                raise Unavailable("the client has left") from error
            except TimeoutError as error:
                self._is_gone = True
                if self._request.transport is not None:
                    self._request.transport.abort()
                raise Unavailable(f"the client took nothing for {self._patience} s") from error

    async def _write(self, events: bytes) -> None:
        if not self._response.prepared:
            if self._patience is not None and self._request.transport is not None:
                _keep_small(self._request.transport)
            await self._response.prepare(self._request)
        if events:
            await self._response.write(events)
        if self._patience is not None:
            await self._request.writer.drain()  # aiohttp itself waits once in 64 KiB only

    async def run(self, work: Awaitable[None], *, ends_with: bytes) -> web.StreamResponse:
        """Do the work that sends, then end the stream; an error in mid-stream is its last event.

        Raises:
            NodeError: refused before anything was sent.
        """
        try:
            await work
            await self.send(ends_with)
        except NodeError as error:
            if not self._response.prepared:
                raise
            if self._is_gone:
                return self._response
            await self.send(openai.error_event(error))
        await self._response.write_eof()
        return self._response


def _keep_small(transport: asyncio.Transport) -> None:
    """Have the client's pace felt after few tokens, not after megabytes of them."""
    transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
