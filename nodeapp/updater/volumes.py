"""Read-only snapshots of the state directory, where it is a btrfs subvolume.

Rules of this file: the only one that calls btrfs; snapshots lie in <state>/.snapshots, which a
snapshot of the state leaves out because they are subvolumes themselves. Names end in their time:
`<reason>-20261123T125500Z`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nodeapp.core.errors import InvalidRequest, NodeError, Unavailable
from nodeapp.core.retention import Retention, in_order, kept
from nodeapp.service.clock import Clock
from nodeapp.updater.command import found_program, run_program

DIRECTORY = ".snapshots"
SCHEDULED = "scheduled"
KEPT_BEFORE_UPDATES = 3
_SUBVOLUME_INODE = 256
"""Of every subvolume's root, BTRFS_FIRST_FREE_OBJECTID."""
_STAMP = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"^([a-z][a-z0-9._-]{0,60})-(\d{8}T\d{6}Z)$")
_COMMAND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """A finished one."""

    path: Path
    reason: str
    made_at: float


class StateSnapshots(Protocol):
    """What an update asks for before it begins."""

    async def take(self, reason: str) -> StateSnapshot:
        """Keep the state as it is now.

        Raises:
            Unavailable: it cannot be kept; nothing may be changed then.
        """
        ...


class BtrfsSnapshots:
    """Of one subvolume. Build with `btrfs_snapshots`, which looks whether there is one."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._state = state
        self._directory = state / DIRECTORY
        self._clock = clock
        self._busy = asyncio.Lock()  # guards: two in one second would want one name

    async def take(self, reason: str) -> StateSnapshot:
        """Take one; older ones of the same reason are left alone.

        Raises:
            InvalidRequest: the reason is no file name.
            Unavailable: btrfs refused.
        """
        async with self._busy:
            made_at = int(self._clock.unix_seconds())
            path = self._directory / _name(reason, made_at)
            await asyncio.to_thread(self._directory.mkdir, mode=0o700, exist_ok=True)
            if not path.exists():
                await self._btrfs("subvolume", "snapshot", "-r", str(self._state), str(path))
            return StateSnapshot(path, reason, float(made_at))

    def listed(self) -> list[StateSnapshot]:
        """Oldest first."""
        found = [
            StateSnapshot(path, match[1], _seconds(match[2]))
            for path in self._directory.glob("*-*Z")
            if (match := _NAME.match(path.name))
        ]
        return sorted(found, key=lambda one: one.made_at)

    async def remove(self, path: Path) -> None:
        """Delete one.

        Raises:
            Unavailable: btrfs refused.
        """
        try:
            await self._btrfs("subvolume", "delete", str(path))
        except Unavailable:
            await self._remove_as_owner(path)

    async def _remove_as_owner(self, path: Path) -> None:
        """Without root a read-only one stays; where the mount lets nobody delete, it is emptied."""
        await self._btrfs("property", "set", "-ts", str(path), "ro", "false")
        try:
            await self._btrfs("subvolume", "delete", str(path))  # user_subvol_rm_allowed
        except Unavailable:
            try:
                await asyncio.to_thread(shutil.rmtree, path)
            except OSError as error:
                raise Unavailable(f"snapshot {path} stays: {error.strerror}") from error

    async def prune(self, rule: Retention) -> list[Path]:
        """Remove scheduled ones by the rule, and all but the last few made before updates."""
        everything = self.listed()
        gone: list[Path] = []
        for is_scheduled, chosen in ((True, rule), (False, Retention(KEPT_BEFORE_UPDATES))):
            made = {
                one.path: one.made_at
                for one in everything
                if (one.reason == SCHEDULED) is is_scheduled
            }
            stays = kept(in_order(made, self._clock.unix_seconds()), chosen)
            gone += [path for path in made if path not in stays]
        for path in gone:
            await self.remove(path)
        return gone

    async def give_way(self) -> Path | None:
        """Remove the oldest one, for its space; None: what is left is the newest of its kind.

        btrfs gives the space back later, with its next commits.

        Raises:
            Unavailable: btrfs refused.
        """
        scheduled = [one for one in self.listed() if one.reason == SCHEDULED]
        others = [one for one in self.listed() if one.reason != SCHEDULED]
        spare = sorted([*scheduled[:-1], *others[:-1]], key=lambda one: one.made_at)
        if not spare:
            return None
        await self.remove(spare[0].path)
        return spare[0].path

    def free_bytes(self) -> int:
        """Left on the file system. Raises: Unavailable."""
        try:
            return shutil.disk_usage(self._state).free
        except OSError as error:
            raise Unavailable(f"{self._state}: {error.strerror}") from error

    async def _btrfs(self, *arguments: str) -> None:
        program = found_program("btrfs", "btrfs-progs")
        try:
            await run_program([program, *arguments], deadline_seconds=_COMMAND_SECONDS)
        except NodeError as error:
            raise Unavailable(f"btrfs {arguments[0]} {arguments[1]}: {error.message}") from error


class CopySnapshots:
    """The same promise without btrfs: what cannot be made again is copied; see manifest.py."""

    def __init__(
        self, directory: Path, clock: Clock, fill: Callable[[Path], Awaitable[object]]
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._fill = fill

    async def take(self, reason: str) -> StateSnapshot:
        """Copy into a directory of its own that appears only when it is complete.

        Raises:
            Unavailable: the journal's owner does not answer, or the disk is full.
        """
        made_at = int(self._clock.unix_seconds())
        path = self._directory / _name(reason, made_at)
        part = path.with_name(f".{path.name}.part")
        try:
            await asyncio.to_thread(_emptied, part)
            await self._fill(part)
            if not path.exists():
                await asyncio.to_thread(part.rename, path)
            made = {
                one: _seconds(one.name[-16:])
                for one in self._directory.glob("*-*Z")
                if _NAME.match(one.name)
            }
            stays = kept(in_order(made, made_at), Retention(KEPT_BEFORE_UPDATES))
            for one in made.keys() - stays:
                await asyncio.to_thread(shutil.rmtree, one)
        except OSError as error:
            raise Unavailable(f"snapshot {path}: {error.strerror}") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
        return StateSnapshot(path, reason, float(made_at))


async def btrfs_snapshots(state: Path, clock: Clock) -> BtrfsSnapshots | None:
    """None where the directory is no subvolume."""
    try:
        if (await asyncio.to_thread(state.stat)).st_ino != _SUBVOLUME_INODE:
            return None
        kind = await run_program(
            [found_program("stat", "coreutils"), "-f", "-c", "%T", str(state)],
            deadline_seconds=_COMMAND_SECONDS,
        )
    except (OSError, NodeError):
        return None
    return BtrfsSnapshots(state, clock) if kind.strip() == b"btrfs" else None


def _emptied(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)


def _name(reason: str, seconds: float) -> str:
    name = f"{reason}-{dt.datetime.fromtimestamp(seconds, dt.UTC).strftime(_STAMP)}"
    if not _NAME.match(name):
        raise InvalidRequest(f"{reason!r} cannot name a snapshot: a-z, 0-9, . _ -")
    return name


def _seconds(stamp: str) -> float:
    moment = dt.datetime.strptime(stamp, _STAMP).replace(tzinfo=dt.UTC)
    return moment.timestamp()
