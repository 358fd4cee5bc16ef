"""From a repository to a node's files: what `backup verify`, `restore` and `drill` do.

Rules of this file: needs no running node, only settings, restic and the passwords; scratch files
go on every way out.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.core.errors import Corrupt
from nodeapp.service.clock import Clock
from nodeapp.service.paths import Paths, resolve_paths
from nodeapp.service.settings import NodeSettings, Settings
from nodeapp.store.backups import head_of, history_of
from nodeapp.updater.lineage import LastGood, remember
from nodeapp.updater.rehearsal import Rehearsed, fetch, rehearse, replay
from nodeapp.updater.restic import Restic, open_restic
from nodeapp.updater.restoring import Plan, carry_out, plan_restore
from nodeapp.updater.staging import node_files, recovery_password
from nodeapp.wire.ipc_updater import DrillReport, RestorePreview


@dataclass(frozen=True, slots=True)
class Repository:
    """A node's repository with all that reading it takes."""

    settings: Settings
    clock: Clock

    @property
    def paths(self) -> Paths:
        """This machine's."""
        return resolve_paths(self.settings.node)

    @property
    def restic(self) -> Restic:
        """See open_restic."""
        return open_restic(self.settings.updater, self.paths.cache)

    @asynccontextmanager
    async def tested(
        self, wanted: str, account: str = "", *, with_blobs: bool = True
    ) -> AsyncIterator[tuple[Rehearsed, Path]]:
        """Fetch and rehearse one; gives it and its scratch directory, which goes afterwards."""
        password = recovery_password(self.settings.updater.recovery_password_file)
        # A drill writes keys: where the node has its own rather than on another disk.
        place = await asyncio.to_thread(_scratch_place, self.paths)
        scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="restore-", dir=place))
        try:
            restic = self.restic
            backup = await restic.one(wanted, account)
            fetched = await fetch(restic, backup, scratch / "fetched", with_blobs=with_blobs)
            yield await rehearse(fetched, password), scratch
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def restore(
        self, wanted: str, account: str = "", *, is_dry_run: bool, replace: bool
    ) -> RestorePreview:
        """Preview, and unless it is a dry run carry out.

        Raises:
            Rejected: a node runs, or something is in the way.
            Corrupt, Unauthorised: the backup does not pass its test; nothing was written.
        """
        async with self.tested(wanted, account) as (tested, scratch):
            plan = await self._plan(tested, self.settings, self.paths, scratch)
            if not is_dry_run:
                await self._write(plan, self.paths, replace=replace)
                await self._go_on_from(tested)
            return plan.preview

    async def _go_on_from(self, tested: Rehearsed) -> None:
        """What this node backs up from now on follows what it was restored from."""
        directory = self.paths.process_state("updater")
        first, *_others = tested.fetched.manifest.journals
        journal = self.paths.journal_of(first.process)
        good = LastGood(
            id=tested.fetched.backup.id,
            repository=await self.restic.identity(),
            history=await asyncio.to_thread(history_of, journal),
        )
        await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(remember, directory, good)

    async def drill(self, wanted: str, account: str = "") -> DrillReport:
        """A full rehearsal: restore everything into an empty directory and open it there.

        Raises:
            Corrupt: what was restored is not what was saved.
        """
        began = self.clock.monotonic_seconds()
        async with self.tested(wanted, account) as (tested, scratch):
            fetched_at = self.clock.monotonic_seconds()
            node = msgspec.structs.replace(
                self.settings.node, state_dir=str(scratch / "blank"), run_dir=str(self.paths.run)
            )
            blank = _blank(self.settings, node)
            paths = resolve_paths(node)
            plan = await self._plan(tested, blank, paths, scratch)
            await self._write(plan, paths, replace=False)
            for entry in tested.fetched.manifest.journals:
                restored = paths.journal_of(entry.process)
                head = await asyncio.to_thread(head_of, restored)
                if head.sha256 != entry.head:
                    raise Corrupt(f"journal {entry.process} has another head after the restore")
                await replay(restored)
            blobs = await asyncio.to_thread(lambda: sum(1 for _ in plan.blobs.glob("*/*")))
            return DrillReport(
                preview=plan.preview,
                journals=tested.reports,
                keys=tuple(sorted(tested.keys)),
                blobs=blobs,
                fetch_seconds=round(fetched_at - began, 3),
                restore_seconds=round(self.clock.monotonic_seconds() - fetched_at, 3),
            )

    async def _plan(
        self, tested: Rehearsed, settings: Settings, paths: Paths, scratch: Path
    ) -> Plan:
        files = node_files(settings, paths)
        now = self.clock.unix_seconds()
        return await asyncio.to_thread(
            plan_restore, tested, files, paths, now=now, scratch=scratch / "present"
        )

    async def _write(self, plan: Plan, paths: Paths, *, replace: bool) -> None:
        moment = dt.datetime.fromtimestamp(self.clock.unix_seconds(), dt.UTC)
        stamp = moment.strftime("%Y%m%dT%H%M%SZ")
        await asyncio.to_thread(carry_out, plan, paths, replace=replace, stamp=stamp)


def _scratch_place(paths: Paths) -> Path | None:
    """The disk that a restore goes to: /tmp is memory on many machines, and all blobs come along.

    None: nothing of it may be written, so nothing will be restored either.
    """
    own = paths.process_state("updater")
    for place in (own, *own.parents):
        if place.is_dir():
            return place if os.access(place, os.W_OK | os.X_OK) else None
    return None


def _blank(settings: Settings, node: NodeSettings) -> Settings:
    """The same node on other hardware: no file of this machine is named."""
    replace = msgspec.structs.replace
    chain = replace(settings.chain, keystore_file="", password_file="", deployment_file="")
    return replace(
        settings,
        node=node,
        chain=chain,
        chains={
            name: replace(one, keystore_file="", password_file="", deployment_file="")
            for name, one in settings.chains.items()
        },
        s5=replace(settings.s5, data_dir=""),
    )
