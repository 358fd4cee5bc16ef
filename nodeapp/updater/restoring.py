"""Putting a tested backup back: first a preview of every file, then the files, journals first.

Rules of this file: only while no node runs; nothing is overwritten: what stands in the way is
refused, or with `replace` moved aside under a name that says when. Journals come first and keys
last, so that a restore that was cut short leaves nothing that could start on an empty journal.
Paths are this machine's: the same file may lie elsewhere than where it was saved from. An audit log
that is here is moved aside in any case: the backup's goes on, and no log is ever thrown away.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.retention import age_text
from nodeapp.service.paths import Paths
from nodeapp.service.tree import LOCK_NAME
from nodeapp.store.atomic import write_whole
from nodeapp.store.backups import copy_closed, owner_of, restore_backup
from nodeapp.store.lock import FileLock
from nodeapp.updater.audit_restoring import RestoredLog, restored_logs
from nodeapp.updater.manifest import SETTINGS
from nodeapp.updater.rehearsal import Rehearsed
from nodeapp.updater.staging import NodeFiles
from nodeapp.wire.ipc_updater import RestorePreview, RestoreStep

Action = Literal["create", "replace", "keep"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be written where."""

    preview: RestorePreview
    tested: Rehearsed
    journals: tuple[tuple[Path, Path], ...]
    """(file of the backup, its place here)."""
    keys: tuple[tuple[str, Path], ...]
    blobs: Path
    audit: tuple[RestoredLog, ...]
    settings: Path


def plan_restore(
    tested: Rehearsed, files: NodeFiles, paths: Paths, *, now: float, scratch: Path
) -> Plan:
    """Compare the backup with this machine; nothing is written but below `scratch`.

    Raises:
        Rejected: a journal of another account is in the way.
    """
    manifest = tested.fetched.manifest
    journals, steps = [], []
    for entry, report in zip(manifest.journals, tested.reports, strict=True):
        target = paths.journal_of(entry.process)
        holds = (
            f"{entry.records} records, {report.sessions} sessions, {report.unsettled} unsettled,"
            f" {report.unclaimed_tokens} tokens to claim, up to block {report.block_number}"
        )
        action: Action = "replace" if target.exists() else "create"
        if action == "replace":
            holds += f"; here: {_present(target, entry.owner, scratch)} records"
        journals.append((tested.fetched.stage / entry.path, target))
        steps.append(RestoreStep(f"journal of {entry.process}", str(target), action, holds))
    keys = []
    for name, content in sorted(tested.keys.items()):
        target = files.keys.get(name) or paths.state / "keys" / name.replace("/", "-")
        action = _action(target, content)
        steps.append(RestoreStep(f"key {name}", str(target), action, f"{len(content)} bytes"))
        if action != "keep":
            keys.append((name, target))
    missing = tuple(
        name for name, path in files.keys.items() if name not in tested.keys and not path.exists()
    )
    if tested.fetched.blobs is not None:
        detail = f"{manifest.blobs} blobs, {manifest.blob_bytes} bytes; those here stay"
        steps.append(RestoreStep("blobs", str(files.blobs), "create", detail))
    logs = restored_logs(tested.fetched, files.audit)
    steps += [one.step() for one in logs]
    preview = RestorePreview(
        id=tested.fetched.backup.id,
        made_at=manifest.made_at,
        age=age_text(now - manifest.made_at),
        node_version=manifest.node_version,
        account=manifest.account,
        steps=tuple(steps),
        missing_keys=missing,
    )
    where = paths.state / "restored-settings"
    return Plan(preview, tested, tuple(journals), tuple(keys), files.blobs, logs, where)


def carry_out(plan: Plan, paths: Paths, *, replace: bool, stamp: str) -> None:
    """Write it all.

    Args:
        plan: of `plan_restore`, just made.
        paths: this machine's.
        replace: move aside what is in the way.
        stamp: part of the names of what was moved.

    Raises:
        Rejected: a node runs on this state directory, or something is in the way.
        Unavailable: the disk is full.
    """
    moved = {str(one.target) for one in plan.audit}
    in_the_way = [
        step.target
        for step in plan.preview.steps
        if step.action == "replace" and step.target not in moved
    ]
    if in_the_way and not replace:
        raise Rejected(
            f"{in_the_way[0]} exists; look at it with --dry-run, then repeat with --replace, which"
            " moves what is there aside"
        )
    with _stopped_node(paths, [target for _, target in plan.journals]):
        try:
            for source, target in plan.journals:
                _move_aside(target, stamp)
                restore_backup(source, target)
            if plan.tested.fetched.blobs is not None:
                _add_missing(plan.tested.fetched.blobs, plan.blobs)
            for log in plan.audit:
                log.carry_out(stamp)
            _copy_settings(plan.tested.fetched.stage / SETTINGS, plan.settings)
            for name, target in plan.keys:
                _move_aside(target, stamp)
                write_whole(target, plan.tested.keys[name], mode=0o600)
        except OSError as error:
            raise Unavailable(f"restore: {error.filename}: {error.strerror}") from error


@contextlib.contextmanager
def _stopped_node(paths: Paths, journals: list[Path]) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        locks = [(paths.state / LOCK_NAME, f"state directory {paths.state}")]
        locks += [(path.with_name(path.name + ".lock"), f"journal {path}") for path in journals]
        for path, what in locks:
            lock = FileLock(path)
            try:
                lock.acquire(what)
            except Unavailable as error:
                raise Rejected(f"{error.message}: a restore needs a stopped node") from error
            held.callback(lock.release)
        yield


def _present(journal: Path, owner: str, scratch: Path) -> int:
    copy = copy_closed(journal, scratch)
    found = owner_of(copy.path)
    if found != owner:
        raise Rejected(
            f"journal {journal} belongs to {found}, the backup to {owner}: another host's backup"
            " is never put over it; use another --state-dir"
        )
    return copy.records


def _action(target: Path, content: bytes) -> Action:
    if not target.exists():
        return "create"
    return "keep" if target.read_bytes() == content else "replace"


def _move_aside(target: Path, stamp: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        path = target.with_name(target.name + suffix)
        if path.exists():
            path.rename(path.with_name(f"{target.name}.before-restore-{stamp}{suffix}"))


def _add_missing(source: Path, target: Path) -> None:
    """Blobs are named by their hashes: one that is here is the same one."""
    for file in source.glob("*/*"):
        place = target / file.parent.name / file.name
        if not place.exists():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = place.with_name(f".{place.name}.part")
            shutil.copyfile(file, part)
            part.chmod(0o600)
            part.replace(place)


def _copy_settings(source: Path, target: Path) -> None:
    """For reference: a start writes its own from this machine's settings file."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in source.glob("*"):
        shutil.copyfile(file, target / file.name)
