"""When backups and state snapshots are made, what is counted, what people and updates may ask.

Rules of this file: one backup at a time; a failure is told, counted and tried again, and never
takes the process down.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web

from nodeapp.core.audit import BackupAction
from nodeapp.core.errors import InvalidRequest, NodeError, Rejected
from nodeapp.core.retention import Retention, age_text
from nodeapp.rpc.updater import BACKUP, BACKUP_ADOPT, BACKUP_INIT, STATE_SNAPSHOT
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.server import endpoint, operator
from nodeapp.service.settings import UpdaterSettings
from nodeapp.updater.backups import Backups
from nodeapp.updater.lineage import Intent, OtherHistory
from nodeapp.updater.restic import Restic, open_restic
from nodeapp.updater.snapshots import Snapshots
from nodeapp.updater.volumes import (
    SCHEDULED,
    BtrfsSnapshots,
    CopySnapshots,
    StateSnapshots,
    btrfs_snapshots,
)
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_chain import MAX_REASON
from nodeapp.wire.ipc_updater import BackupView, StateSnapshotRequest, StateSnapshotView

JITTER = 0.1
"""Of an interval at most: many nodes of one operator share a repository."""
RETRY_SECONDS = 60.0
FIRST_SECONDS = 10.0
"""On a new disk what the repository holds must be known before much is done."""
ROOM_SECONDS = 90.0
"""Three of btrfs' commits, after which the space of what was removed is told as free."""
BEFORE_UPDATE = "pre-update"
Hold = Callable[[str], Awaitable[None]]
"""Stop the chain processes from serving and signing, for a reason; "": let them go on."""
_log = get_logger(__name__)


class BackupRounds:
    """Owned by the updater process."""

    def __init__(
        self,
        shell: Shell,
        settings: UpdaterSettings,
        journals: Mapping[str, Snapshots],
        hold: Hold,
    ) -> None:
        self._shell = shell
        self._settings = settings
        self._journals = journals
        self._hold = hold
        # Whoever was here before may have died between an adoption and its release.
        self._may_be_held = True
        self._busy = asyncio.Lock()  # guards: the stage directory is one
        self._backups: Backups | None = None
        self._volume: BtrfsSnapshots | None = None
        self._trouble = ""
        metrics = shell.metrics
        self._counted = metrics.counter("backups_total", "Backups by outcome", ("outcome",))
        self._seconds = metrics.histogram("backup_seconds", "Making and testing one backup")
        self._good = metrics.gauge("backup_last_good_timestamp_seconds", "Newest tested backup")
        self._undecided = metrics.gauge(
            "backup_needs_operator", "1: no backup before an operator has decided, see status"
        )
        self._added = metrics.counter("backup_added_bytes_total", "Bytes new to the repository")
        self._kept = metrics.gauge("state_snapshots", "btrfs snapshots of the state")

    def routes(self) -> Sequence[web.RouteDef]:
        """What rpc/updater.py calls."""
        return [
            web.post(BACKUP, operator(endpoint(Empty, self.create))),
            web.post(BACKUP_INIT, operator(endpoint(Empty, self.init))),
            web.post(BACKUP_ADOPT, operator(endpoint(Empty, self.adopt))),
            web.post(STATE_SNAPSHOT, operator(endpoint(StateSnapshotRequest, self.keep_state))),
        ]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin the schedules that the settings and the file system allow.

        Raises:
            InvalidRequest: a repository is named and its password file is missing.
        """
        self._volume = await btrfs_snapshots(self._shell.paths.state, self._shell.clock)
        if self._settings.restic_repository:
            restic = open_restic(self._settings, self._shell.paths.cache)
            self._backups = self._with(restic)
            await self._backups.clean()
            self._good.set(self._backups.last_good().at)
            tasks.create_task(self._backup_rounds(self._backups), name="backups")
        if self._volume is not None:
            tasks.create_task(self._volume_rounds(self._volume), name="state snapshots")
            tasks.create_task(self._room_rounds(self._volume), name="room for the state")

    def summary(self) -> str:
        """For the readiness line; empty without a repository."""
        if self._backups is None:
            return ""
        trouble = f", backup failed: {self._trouble}" if self._trouble else ""
        return f"{self._backups.summary()}{trouble}"

    async def create(self, _message: Empty) -> BackupView:
        """One now, asked for.

        Raises:
            InvalidRequest: no repository is set.
        """
        return await self._create(self._required())

    async def init(self, _message: Empty) -> BackupView:
        """One now into whatever repository is there, a new one if there is none.

        Raises:
            InvalidRequest: no repository is set.
        """
        return await self._create(self._required(), intent="init")

    async def adopt(self, _message: Empty) -> BackupView:
        """One now, after another history's: the operator goes on with the journal that is here.

        Raises:
            InvalidRequest: no repository is set.
        """
        return await self._create(self._required(), intent="adopt")

    async def keep_state(self, request: StateSnapshotRequest) -> StateSnapshotView:
        """The whole state as it is now: btrfs, or a copy of what cannot be made again."""
        taken = await self._state_snapshots().take(request.reason)
        _log.info("state snapshot taken", path=str(taken.path), reason=taken.reason)
        return StateSnapshotView(str(taken.path), taken.reason, taken.made_at)

    async def before_update(self) -> None:
        """Keep the state before the node changes under it.

        Raises:
            Unavailable: it cannot be kept; the update must not begin.
        """
        await self.keep_state(StateSnapshotRequest(BEFORE_UPDATE))

    def _state_snapshots(self) -> StateSnapshots:
        if self._volume is not None:
            return self._volume
        directory = self._shell.paths.process_state("updater") / "states"
        copier = self._backups or self._with(None)
        return CopySnapshots(directory, self._shell.clock, copier.fill)

    def _with(self, restic: Restic | None) -> Backups:
        return Backups(
            settings=self._settings,
            paths=self._shell.paths,
            journals=self._journals,
            restic=restic,
            clock=self._shell.clock,
            volume=self._volume,
        )

    def _required(self) -> Backups:
        if self._backups is None:
            raise InvalidRequest(
                "updater.restic_repository is not set: there is nowhere to back up"
            )
        return self._backups

    async def _create(
        self, backups: Backups, *, only_if_changed: bool = False, intent: Intent = "usual"
    ) -> BackupView:
        async with self._busy:
            try:
                made = await backups.create(only_if_changed=only_if_changed, intent=intent)
            except NodeError as error:
                self._counted.labels("failed").inc()
                self._undecided.set(isinstance(error, Rejected))
                if self._trouble != error.message:
                    # Once, however often the same is tried again.
                    self._note("", error.code, error.message)
                self._trouble = error.message
                if isinstance(error, OtherHistory):
                    # With every try: a chain process that was restarted has forgotten it.
                    await self._hold_back(error.message)
                raise
            if self._may_be_held:
                await self._hold_back("")
        self._trouble = ""
        self._undecided.set(0)
        self._counted.labels("made" if made.is_new else "unchanged").inc()
        self._seconds.observe(made.seconds)
        self._added.inc(made.bytes_added)
        self._good.set(self._shell.clock.unix_seconds())
        if made.is_new:
            detail = f"{made.records} records, {made.sessions} sessions"
            self._note(made.id, "done", detail, "make" if intent == "usual" else intent)
            _log.info("backup made", id=made.id[:8], records=made.records, seconds=made.seconds)
        return made

    async def _hold_back(self, reason: str) -> None:
        self._may_be_held = True
        try:
            await self._hold(reason[:MAX_REASON])
            self._may_be_held = bool(reason)
        except NodeError as error:
            _log.warning("not every chain process was told", error=error.message)

    def _note(self, made: str, outcome: str, detail: str, action: str = "make") -> None:
        self._shell.audit.record(BackupAction(action, made, outcome, detail))

    async def _backup_rounds(self, backups: Backups) -> None:
        interval = self._settings.backup_interval_seconds
        wait = interval if backups.last_good().at else min(interval, FIRST_SECONDS)
        while True:
            await asyncio.sleep(_jittered(wait))
            try:
                await self._create(backups, only_if_changed=True)
                wait = interval
            except NodeError as error:
                wait = min(interval, RETRY_SECONDS)
                age = self._shell.clock.unix_seconds() - backups.last_good().at
                _log.warning("backup failed", error=error.message, last_good=age_text(age))

    async def _volume_rounds(self, volume: BtrfsSnapshots) -> None:
        rule = Retention(
            self._settings.keep_last, self._settings.keep_daily, self._settings.keep_weekly
        )
        while True:
            try:
                await volume.take(SCHEDULED)
                gone = await volume.prune(rule)
                self._kept.set(len(volume.listed()))
                _log.info("state snapshot taken", removed=len(gone))
            except NodeError as error:
                _log.warning("state snapshot failed", error=error.message)
            await asyncio.sleep(_jittered(self._settings.state_snapshot_interval_seconds))

    async def _room_rounds(self, volume: BtrfsSnapshots) -> None:
        """One a round: until the next one the file system has its space back."""
        while True:
            try:
                free = await asyncio.to_thread(volume.free_bytes)
                gone = await volume.give_way() if free < self._settings.keep_free_bytes else None
                if gone is not None:
                    self._kept.set(len(volume.listed()))
                    _log.warning("snapshot gave way", path=str(gone), free_mib=free >> 20)
            except NodeError as error:
                _log.warning("no room is made", error=error.message)
            await asyncio.sleep(ROOM_SECONDS)


def _jittered(seconds: float) -> float:
    return seconds * (1.0 + JITTER * secrets.randbelow(1001) / 1000)
