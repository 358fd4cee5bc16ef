"""Asking the updater process."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_updater import (
    BackupView,
    SnapshotList,
    SnapshotView,
    StateSnapshotRequest,
    StateSnapshotView,
    VersionView,
)

BACKUP = "/v1/backup"
STATE_SNAPSHOT = "/v1/state-snapshot"
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

    async def backup(self) -> BackupView:
        """Back up into the repository now, and restore that for a test.

        Raises:
            InvalidRequest: no repository is set.
            Unavailable: restic or the repository does not answer.
        """
        return await self._rpc.call(BACKUP, Empty(), BackupView, deadline_seconds=7 * 3600.0)

    async def keep_state(self, reason: str) -> StateSnapshotView:
        """Keep the state as it is now, under a reason such as "pre-1.2.0".

        Raises:
            Unavailable: it cannot be kept; nothing may be changed then.
        """
        request = StateSnapshotRequest(reason)
        return await self._rpc.call(
            STATE_SNAPSHOT, request, StateSnapshotView, deadline_seconds=600.0
        )

    async def snapshots(self) -> SnapshotList:
        """What is kept."""
        return await self._rpc.get(SNAPSHOTS, SnapshotList, deadline_seconds=10.0)

    async def version(self) -> VersionView:
        """What runs."""
        return await self._rpc.get(VERSION, VersionView, deadline_seconds=5.0)
