"""New heads over WebSocket: only a bell for whoever polls, never a source of truth.

Each address has its own connection; one that fails is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence

import aiohttp
import msgspec

from nodeapp.core.errors import Unavailable
from nodeapp.evm.endpoint import endpoint_name

MAX_MESSAGE_BYTES = 1 << 20
CONNECT_SECONDS = 10.0
HEARTBEAT_SECONDS = 20.0
SILENCE_SECONDS = 90.0
"""A subscription that rings no bell for so long is made anew."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 120.0
_SUBSCRIBE = {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]}
SCHEMES = frozenset({"ws", "wss"})


class NewHeads:
    """Subscriptions to one or more ws:// or wss:// addresses."""

    def __init__(
        self,
        urls: Sequence[str],
        ring: Callable[[], None],
        *,
        silence_seconds: float = SILENCE_SECONDS,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        """Nothing is connected yet.

        Args:
            urls: addresses that offer eth_subscribe.
            ring: called for every new head of any of them.
            silence_seconds: without a head for so long a connection is made anew.
            first_pause_seconds: before the first new try; later ones wait longer.

        Raises:
            InvalidRequest: an address is not ws or wss.
        """
        self._named = tuple((endpoint_name(url, SCHEMES), url) for url in urls)
        self._ring = ring
        self._silence_seconds = silence_seconds
        self._first_pause_seconds = first_pause_seconds
        self.live: set[str] = set()
        """Addresses (scheme, host, port) whose subscription stands."""

    async def run(self) -> None:
        """Keep every subscription up until cancelled."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for name, url in self._named:
                group.create_task(self._keep(session, name, url))

    async def _keep(self, session: aiohttp.ClientSession, name: str, url: str) -> None:
        pause = self._first_pause_seconds
        while True:
            # The poller goes on without it; `live` tells that this one is down.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, Unavailable):
                await self._listen(session, name, url)
            if name in self.live:
                pause = self._first_pause_seconds
            self.live.discard(name)
            await asyncio.sleep(pause * (0.5 + secrets.randbelow(500) / 1000))
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)

    async def _listen(self, session: aiohttp.ClientSession, name: str, url: str) -> None:
        async with asyncio.timeout(CONNECT_SECONDS):
            socket = await session.ws_connect(
                url, heartbeat=HEARTBEAT_SECONDS, max_msg_size=MAX_MESSAGE_BYTES
            )
        async with socket:
            await socket.send_str(msgspec.json.encode(_SUBSCRIBE).decode())
            while True:
                async with asyncio.timeout(self._silence_seconds):
                    message = await socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return
                self._heard(name, message.data)

    def _heard(self, name: str, text: str) -> None:
        try:
            message = msgspec.json.decode(text, type=_Message)
        except msgspec.MsgspecError as error:
            raise Unavailable("message is no json-rpc") from error
        if message.error is not None:
            raise Unavailable("eth_subscribe was refused")
        if message.id == 1:
            self.live.add(name)
        elif message.method == "eth_subscription" and name in self.live:
            self._ring()


class _Message(msgspec.Struct, frozen=True):
    """Of an answer or a notification only what is needed to ring."""

    id: int | None = None
    method: str = ""
    error: msgspec.Raw | None = None
