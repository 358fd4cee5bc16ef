"""Asking the updater process about updates of the node itself."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_update import AllowRequest, HoldRequest, UpdateView

STATUS = "/v1/update"
CHECK = "/v1/update/check"
APPLY = "/v1/update/apply"
ROLLBACK = "/v1/update/rollback"
HOLD = "/v1/update/hold"
ALLOW = "/v1/update/allow"
CHECK_SECONDS = 60.0
SECONDS = 10.0
TURN_SECONDS = CHECK_SECONDS
"""What changes something waits for a look at the channel that is under way."""


class UpdateClient:
    """Use as an async context manager."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "updater")

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def status(self) -> UpdateView:
        """How it stands."""
        return await self._rpc.get(STATUS, UpdateView, deadline_seconds=SECONDS)

    async def check(self) -> UpdateView:
        """Look what the channel offers.

        Raises:
            Rejected: the metadata is not to be trusted; an update is under way.
            Unavailable: the repository does not answer.
        """
        return await self._rpc.call(CHECK, Empty(), UpdateView, deadline_seconds=CHECK_SECONDS)

    async def apply(self) -> UpdateView:
        """Begin to install what is available; `status` tells how it goes.

        Raises:
            Rejected: nothing is available, updates are held, one is under way.
        """
        return await self._rpc.call(APPLY, Empty(), UpdateView, deadline_seconds=TURN_SECONDS)

    async def rollback(self) -> UpdateView:
        """Begin to go back to the previous release.

        Raises:
            Rejected: there is none, or an update is under way.
        """
        return await self._rpc.call(ROLLBACK, Empty(), UpdateView, deadline_seconds=TURN_SECONDS)

    async def hold(self, *, is_held: bool) -> UpdateView:
        """Stop or allow updates."""
        message = HoldRequest(is_held)
        return await self._rpc.call(HOLD, message, UpdateView, deadline_seconds=TURN_SECONDS)

    async def allow(self, version: str) -> UpdateView:
        """Take a version off the blacklist.

        Raises:
            Rejected: it is not on it.
        """
        message = AllowRequest(version)
        return await self._rpc.call(ALLOW, message, UpdateView, deadline_seconds=TURN_SECONDS)
