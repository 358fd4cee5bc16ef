"""Snapshots of the journal: asked from chain, verified here, old ones removed.

Only a copy that was verified counts, and nothing is removed before the new one is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nodeapp.core.errors import Corrupt
from nodeapp.store.backups import BackupFile, list_backups, prune_backups, verify_backup
from nodeapp.wire.ipc_chain import BackupReply
from nodeapp.wire.ipc_updater import SnapshotList, SnapshotView


class BackupSource(Protocol):
    """Whoever owns the journal."""

    async def backup(self, directory: Path) -> BackupReply:
        """Copy it into the directory."""
        ...


class Snapshots:
    """One directory of verified copies."""

    def __init__(self, source: BackupSource, directory: Path, keep: int) -> None:
        self._source = source
        self._directory = directory
        self._keep = keep
        # One copy at a time: two would prune each other's view of the directory.
        self._busy = asyncio.Lock()

    async def make(self) -> SnapshotView:
        """Copy, verify, prune.

        Raises:
            Unavailable: the journal's owner does not answer, or the disk is full.
            Corrupt: the copy is not what its owner said.
        """
        async with self._busy:
            reply = await self._source.backup(self._directory)
            verified = await asyncio.to_thread(verify_backup, Path(reply.path))
            if (verified.sha256, verified.records) != (reply.sha256, reply.records):
                raise Corrupt(
                    f"backup {reply.path} has sha256 {verified.sha256}, announced {reply.sha256}"
                )
            await asyncio.to_thread(prune_backups, self._directory, self._keep, verified.path)
            return view(verified)

    async def kept(self) -> SnapshotList:
        """What is there, oldest first."""
        found = await asyncio.to_thread(list_backups, self._directory)
        return SnapshotList(snapshots=tuple(view(backup) for backup in found))


class SnapshotSets:
    """The snapshots of every chain's journal; those of the first chain come first."""

    def __init__(self, sets: Sequence[Snapshots]) -> None:
        self._sets = tuple(sets)

    async def make(self) -> SnapshotView:
        """One of every journal; tells the first chain's.

        Raises:
            Unavailable: a journal's owner does not answer, or the disk is full.
            Corrupt: a copy is not what its owner said.
        """
        first, *_others = [await one.make() for one in self._sets]
        return first

    async def kept(self) -> SnapshotList:
        """What is there, oldest first, journal by journal."""
        lists = [await one.kept() for one in self._sets]
        return SnapshotList(snapshots=tuple(view for one in lists for view in one.snapshots))


def view(backup: BackupFile) -> SnapshotView:
    """Its form between processes."""
    return SnapshotView(
        path=str(backup.path),
        sha256=backup.sha256,
        size_bytes=backup.size_bytes,
        records=backup.records,
    )
