"""Asking the p2p process."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_p2p import BanList, BanRequest, BanView, LiftRequest, NetworkView

NETWORK = "/v1/network"
BANS = "/v1/bans"
BAN = "/v1/bans/add"
LIFT = "/v1/bans/lift"
DRAIN = "/v1/drain"
RESUME = "/v1/resume"
SECONDS = 5.0


class P2pClient:
    """Use as an async context manager."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "p2p")

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def network(self) -> NetworkView:
        """Who we are on the network."""
        return await self._rpc.get(NETWORK, NetworkView, deadline_seconds=SECONDS)

    async def bans(self) -> BanList:
        """Who is kept out."""
        return await self._rpc.get(BANS, BanList, deadline_seconds=SECONDS)

    async def ban(self, request: BanRequest) -> BanView:
        """Keep somebody out.

        Raises:
            InvalidRequest: not a name of a peer, wallet or subnet.
        """
        return await self._rpc.call(BAN, request, BanView, deadline_seconds=SECONDS)

    async def lift(self, name: str) -> BanList:
        """Let somebody in again.

        Raises:
            NotFound: there is no such ban.
        """
        return await self._rpc.call(LIFT, LiftRequest(name), BanList, deadline_seconds=SECONDS)

    async def drain(self, seconds: float) -> NetworkView:
        """Take no new conversation; returns when the last one under way has ended.

        Raises:
            Unavailable: some are still under way; new ones are refused until `resume`.
        """
        return await self._rpc.call(DRAIN, Empty(), NetworkView, deadline_seconds=seconds)

    async def resume(self) -> NetworkView:
        """Serve again."""
        return await self._rpc.call(RESUME, Empty(), NetworkView, deadline_seconds=SECONDS)
