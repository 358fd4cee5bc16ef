"""The updater's own part: a snapshot at every interval, answers in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from nodeapp.core.errors import NodeError
from nodeapp.rpc.chain import ChainClient
from nodeapp.service.chains import FIRST, chain_processes, snapshots_of
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.settings import UpdaterSettings
from nodeapp.updater.api import updater_routes
from nodeapp.updater.backup_rounds import BackupRounds
from nodeapp.updater.snapshots import Snapshots, SnapshotSets
from nodeapp.updater.updates import Updates

_log = get_logger(__name__)


class Updater:
    """The process's own part for run_service."""

    def __init__(self, shell: Shell, settings: UpdaterSettings) -> None:
        self._settings = settings
        directory = Path(settings.snapshot_dir or shell.paths.state / "snapshots")
        processes = chain_processes(shell.node.processes) or (FIRST,)
        self._chains = {one: ChainClient(shell.paths.socket(one)) for one in processes}
        self._resources = AsyncExitStack()
        journals = {
            one: Snapshots(chain, snapshots_of(directory, one), settings.keep_snapshots)
            for one, chain in self._chains.items()
        }
        self._snapshots = SnapshotSets(list(journals.values()))
        self._backups = BackupRounds(shell, settings, journals, self._hold)
        self._updates = Updates(shell, settings, self._keep_before_update)
        self._made = shell.metrics.counter("snapshots_total", "snapshots by outcome", ("outcome",))
        self._records = shell.metrics.gauge("snapshot_records", "records in the newest snapshot")
        self._detail = "no snapshot yet"

    def routes(self) -> Sequence[web.RouteDef]:
        """See api.py."""
        return [*updater_routes(self._snapshots), *self._backups.routes(), *self._updates.routes()]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin the rounds; the first one waits an interval, so that a start is not slowed."""
        for chain in self._chains.values():
            await self._resources.enter_async_context(chain)
        await self._backups.start(tasks)
        await self._updates.start(tasks)
        tasks.create_task(self._rounds(), name="snapshots")

    def readiness(self) -> str:
        """The newest snapshot, the newest good backup, what is to be known of updates."""
        parts = (self._detail, self._backups.summary(), self._updates.summary())
        return "; ".join(filter(None, parts))

    async def drain(self) -> None:
        """A copy under way is thrown away: it has no checksum file yet."""

    async def stop(self) -> None:
        """Close the connections to the chain processes."""
        await self._resources.aclose()

    async def _hold(self, reason: str) -> None:
        for chain in self._chains.values():
            await chain.hold(reason)

    async def _keep_before_update(self) -> None:
        await self._snapshots.make()
        await self._backups.before_update()

    async def _rounds(self) -> None:
        while True:
            await asyncio.sleep(self._settings.snapshot_interval_seconds)
            await self._round()

    async def _round(self) -> None:
        try:
            made = await self._snapshots.make()
        except NodeError as error:
            # The next round tries again; a backup must never take the node down.
            self._made.labels("failed").inc()
            self._detail = f"last snapshot failed: {error.message}"
            _log.warning("snapshot failed", error=error.message)
            return
        self._made.labels("made").inc()
        self._records.set(made.records)
        self._detail = f"newest snapshot has {made.records} records"
        _log.info("snapshot made", records=made.records, path=made.path)
