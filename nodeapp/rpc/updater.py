"""Asking the updater process."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_updater import SnapshotList, SnapshotView, VersionView

SNAPSHOT = "/v1/snapshot"
SNAPSHOTS = "/v1/snapshots"
VERSION = "/v1/version"


class UpdaterClient:
    """Use as an async context manager."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "updater")

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def snapshot(self) -> SnapshotView:
        """Make and verify one now.

        Raises:
            Unavailable: the chain process does not answer, or the disk is full.
        """
        return await self._rpc.call(SNAPSHOT, Empty(), SnapshotView, deadline_seconds=90.0)

    async def snapshots(self) -> SnapshotList:
        """What is kept."""
        return await self._rpc.get(SNAPSHOTS, SnapshotList, deadline_seconds=10.0)

    async def version(self) -> VersionView:
        """What runs."""
        return await self._rpc.get(VERSION, VersionView, deadline_seconds=5.0)
