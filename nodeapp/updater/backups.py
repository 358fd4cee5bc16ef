"""Backups of the node into a restic repository: make, restore for a test, then count it as good.

Rules of this file: what the test did not pass is reported and never counts; nothing is forgotten
before a newer backup is good; scratch files go on every way out.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from nodeapp.core.errors import Corrupt, InvalidRequest, NodeError
from nodeapp.core.retention import DAY_SECONDS, Retention, age_text, kept
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.service.paths import Paths
from nodeapp.service.settings import UpdaterSettings
from nodeapp.store.backups import copy_closed, history_of
from nodeapp.updater.lineage import (
    Intent,
    LastGood,
    check_history,
    clock_behind,
    opened,
    remember,
    remembered,
)
from nodeapp.updater.manifest import Manifest
from nodeapp.updater.rehearsal import STAGE, Rehearsed, fetch, rehearse
from nodeapp.updater.restic import Restic, Stored
from nodeapp.updater.snapshots import Snapshots
from nodeapp.updater.staging import (
    NodeFiles,
    fill_stage,
    is_readable,
    node_files,
    recovery_password,
    running_settings,
)
from nodeapp.updater.volumes import BtrfsSnapshots
from nodeapp.wire.ipc_updater import BackupView

FOR_BACKUP = "backup"
"""Reason of the btrfs snapshots that last as long as a journal is copied out of them."""
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backups:
    """All that one backup needs; `create` is called by one task at a time."""

    settings: UpdaterSettings
    paths: Paths
    journals: Mapping[str, Snapshots]
    """By chain process, the first chain first."""
    restic: Restic | None
    """None: only `fill` is used."""
    clock: Clock
    volume: BtrfsSnapshots | None

    @property
    def directory(self) -> Path:
        """The process's own files."""
        return self.paths.process_state("updater")

    async def create(
        self, *, only_if_changed: bool = False, intent: Intent = "usual"
    ) -> BackupView:
        """Make one, restore it for a test, apply the retention.

        Raises:
            Unavailable: restic, the repository or the journal's owner does not answer.
            Corrupt: the copy that came back is not what was saved.
            InvalidRequest: a password file is missing or unfit.
            Rejected: the repository or its backups are not this node's; see lineage.py.
        """
        if (restic := self.restic) is None:
            raise InvalidRequest(
                "updater.restic_repository is not set: there is nowhere to back up"
            )
        began = self.clock.monotonic_seconds()
        password = recovery_password(self.settings.recovery_password_file)
        stage = self.directory / STAGE
        try:
            files = await self.files()
            manifest = await self._fill(stage, files, password)
            before = self.last_good()
            if intent == "init":
                before = LastGood(history=before.history)
            place = await self._place(restic, before, manifest, intent)
            if only_if_changed and place.holds(before, manifest):
                good, added = msgspec.structs.replace(place.good, at=self.clock.unix_seconds()), 0
            else:
                # The journal's copy is older than the blobs: it never names one that is missing.
                roots = await asyncio.to_thread(_roots, stage, files)
                wanted = replace(place.next, paths=roots)
                made, added = await restic.save(wanted)
                backup = replace(wanted, id=made)
                tested = await self._test(restic, backup, manifest, password)
                good = msgspec.structs.replace(
                    place.good,
                    at=self.clock.unix_seconds(),
                    id=made,
                    content=manifest.content(),
                    sessions=sum(one.sessions for one in tested.reports),
                    has_keys=bool(manifest.key_names),
                )
                good = await self._forget(restic, good, (*place.own, backup))
            await asyncio.to_thread(remember, self.directory, good)
        finally:
            await asyncio.to_thread(shutil.rmtree, stage, ignore_errors=True)
        return BackupView(
            id=good.id,
            records=manifest.records,
            sessions=good.sessions,
            bytes_added=added,
            seconds=round(self.clock.monotonic_seconds() - began, 3),
            has_keys=bool(manifest.key_names),
            is_new=good.id != before.id,
        )

    async def files(self) -> NodeFiles:
        """Where the running tree has its files."""
        settings = await asyncio.to_thread(running_settings, self.paths, tuple(self.journals))
        return node_files(settings, self.paths)

    async def fill(self, directory: Path) -> Manifest:
        """The same files without repository and keys, for a snapshot without btrfs."""
        return await self._fill(directory, await self.files(), b"")

    async def clean(self) -> None:
        """Remove what a process that was killed left behind; once, before anything is made."""
        for path in (*self.directory.glob("backup-*.test"), self.directory / STAGE, self._scratch):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        for snapshot in self.volume.listed() if self.volume is not None else ():
            if snapshot.reason == FOR_BACKUP and self.volume is not None:
                await self.volume.remove(snapshot.path)

    def last_good(self) -> LastGood:
        """The newest backup that passed its test."""
        return remembered(self.directory)

    def summary(self) -> str:
        """For the readiness line."""
        good = self.last_good()
        if not good.at:
            return "no good backup yet"
        age = age_text(self.clock.unix_seconds() - good.at)
        return f"last good backup {age} ago{good.notes()}"

    async def _fill(self, stage: Path, files: NodeFiles, password: bytes) -> Manifest:
        copies, source = await self._copies()
        try:
            return await asyncio.to_thread(
                fill_stage,
                stage,
                copies,
                files,
                conf=self.paths.state / "conf",
                password=password,
                made_at=int(self.clock.unix_seconds()),
                source=source,
            )
        finally:
            if source == "btrfs":
                await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    @property
    def _scratch(self) -> Path:
        return self.directory / "journals"

    async def _copies(self) -> tuple[dict[str, Path], str]:
        """Of every journal at one moment from a snapshot, or else by SQLite, one by one."""
        if self.volume is not None:
            try:
                return await self._copies_of_volume(self.volume), "btrfs"
            except NodeError as error:
                _log.warning("no btrfs snapshot, journals are copied", error=error.message)
        made = {one: await source.make() for one, source in self.journals.items()}
        return {one: Path(view.path) for one, view in made.items()}, "copy"

    async def _copies_of_volume(self, volume: BtrfsSnapshots) -> dict[str, Path]:
        snapshot = await volume.take(FOR_BACKUP)
        try:
            found = {}
            for process in self.journals:
                inside = self.paths.journal_of(process).relative_to(self.paths.state)
                copy = await asyncio.to_thread(
                    copy_closed, snapshot.path / inside, self._scratch / process
                )
                found[process] = copy.path
            return found
        finally:
            await volume.remove(snapshot.path)

    async def _place(
        self, restic: Restic, before: LastGood, manifest: Manifest, intent: Intent
    ) -> _Place:
        if intent == "init":
            repository, everything = await restic.prepare(), await restic.stored()
        else:
            repository, everything = await opened(restic, before)
        account, now = manifest.account, self.clock.unix_seconds()
        copy = self.directory / STAGE / manifest.journals[0].path
        history = await asyncio.to_thread(history_of, copy)
        mine = [one for one in everything if one.account == account]
        if intent != "adopt":
            check_history(before, history, account, mine)
        made_at = dt.datetime.fromtimestamp(now, dt.UTC).isoformat()
        sequence = max((one.sequence for one in mine), default=0) + 1
        return _Place(
            # Another history's are left alone: only an operator knows that they are not wanted.
            own=tuple(one for one in mine if one.history in {"", history}),
            next=Stored("", made_at, account, (), history, sequence),
            good=msgspec.structs.replace(
                before,
                repository=repository,
                history=history,
                clock_behind_seconds=clock_behind(now, mine),
            ),
        )

    async def _test(
        self, restic: Restic, backup: Stored, manifest: Manifest, password: bytes
    ) -> Rehearsed:
        scratch = Path(
            await asyncio.to_thread(tempfile.mkdtemp, ".test", "backup-", self.directory)
        )
        try:
            tested = await rehearse(
                await fetch(restic, backup, scratch, with_blobs=False), password
            )
            if tested.fetched.manifest != manifest:
                raise Corrupt(
                    f"backup {backup.id[:8]} came back with another manifest than was saved"
                )
            return tested
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _forget(self, restic: Restic, good: LastGood, own: Sequence[Stored]) -> LastGood:
        """Space is freed once a day: that reads the repository's whole index."""
        rule = Retention(
            self.settings.keep_last, self.settings.keep_daily, self.settings.keep_weekly
        )
        stays = kept([(one.id, one.unix_seconds) for one in own], rule)
        # Also when the clock was set back since.
        is_due = not 0 <= good.at - good.pruned_at < DAY_SECONDS
        try:
            await restic.forget([one for one in own if one.id not in stays])
            if is_due:
                await restic.prune()
        except NodeError as error:
            # The backup itself is good; an append-only repository refuses this for ever.
            _log.warning("old backups are still there", error=error.message)
            return good
        return msgspec.structs.replace(good, pruned_at=good.at) if is_due else good


def _roots(stage: Path, files: NodeFiles) -> tuple[Path, ...]:
    roots = [stage, *([files.blobs] if files.blobs.is_dir() else ())]
    if is_readable(files.audit):
        roots.append(files.audit)
    elif files.audit.exists():
        _log.warning("audit logs are not backed up: some cannot be read")
    return tuple(roots)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the next backup goes."""

    own: tuple[Stored, ...]
    """Those that it follows, oldest first."""
    next: Stored
    good: LastGood
    """What is remembered when it is good, without what only the backup itself tells."""

    def holds(self, before: LastGood, manifest: Manifest) -> bool:
        """Whether the last one is there and nothing has changed since."""
        return before.content == manifest.content() and any(
            one.id.startswith(before.id) for one in self.own
        )
