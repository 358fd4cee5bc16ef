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
BACKUP_INIT = "/v1/backup/init"
BACKUP_ADOPT = "/v1/backup/adopt"
_BACKUP_SECONDS = 7 * 3600.0
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
        return await self._backup(BACKUP)

    async def backup_init(self) -> BackupView:
        """The same into the repository that is there now, or a new one; from now on it counts.

        Raises:
            Rejected: it holds this account's backups with another history.
            Unavailable: restic or the repository does not answer.
        """
        return await self._backup(BACKUP_INIT)

    async def backup_adopt(self) -> BackupView:
        """The same although the account's backups there are not of this journal's history.

        Raises:
            Rejected: it is another repository.
            Unavailable: restic or the repository does not answer.
        """
        return await self._backup(BACKUP_ADOPT)

    async def _backup(self, path: str) -> BackupView:
        return await self._rpc.call(path, Empty(), BackupView, deadline_seconds=_BACKUP_SECONDS)

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
