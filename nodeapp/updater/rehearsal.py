"""A backup counts when it was fetched, compared, unsealed and replayed. Nothing here trusts a copy.

Rules of this file: works below a scratch directory that the caller owns; the node's own files are
not touched.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

import nodeapp
from nodeapp.core.errors import Corrupt, NodeError, Unauthorised
from nodeapp.security.audit import DIRECTORY
from nodeapp.security.envelope import unseal
from nodeapp.store.backups import head_of
from nodeapp.updater.command import run_program
from nodeapp.updater.manifest import KEYS, Manifest, check_files, read_manifest
from nodeapp.updater.restic import Restic, Stored
from nodeapp.updater.staging import BLOBS
from nodeapp.wire.ipc_updater import ReplayReport

STAGE = "stage"
REPLAY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A backup's files, somewhere below a scratch directory."""

    backup: Stored
    stage: Path
    blobs: Path | None
    manifest: Manifest
    audit: Path | None = None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A backup that would work: what its journals hold and the keys that came out of it."""

    fetched: Fetched
    reports: tuple[ReplayReport, ...]
    """In the order of the manifest's journals."""
    keys: dict[str, bytes]
    """Empty when it has none, or no password was given."""


async def fetch(restic: Restic, backup: Stored, scratch: Path, *, with_blobs: bool) -> Fetched:
    """Bring it here.

    Raises:
        Unavailable: the repository cannot be read, or lacks a part.
        Corrupt: it is no backup of this program, or of a newer one.
    """
    stage = next((path for path in backup.paths if path.name == STAGE), None)
    if stage is None:
        raise Corrupt(f"backup {backup.id[:8]} was not made by this program")
    await restic.fetch(backup, scratch, None if with_blobs else stage)
    there = scratch / stage.relative_to("/")
    manifest = await asyncio.to_thread(read_manifest, there)
    beside = {path.name: scratch / path.relative_to("/") for path in backup.paths if path != stage}
    if not with_blobs:
        return Fetched(backup, there, None, manifest)
    return Fetched(backup, there, beside.get(BLOBS), manifest, beside.get(DIRECTORY))


async def rehearse(fetched: Fetched, password: bytes) -> Rehearsed:
    """Prove that a restore would work.

    Raises:
        Corrupt: a file was altered, a journal does not replay to the head it was saved with.
        Unauthorised: the recovery password does not open the keys.
    """
    stage, manifest = fetched.stage, fetched.manifest
    await asyncio.to_thread(check_files, stage, manifest)
    reports = []
    for journal in manifest.journals:
        path = stage / journal.path
        head = await asyncio.to_thread(head_of, path)
        if (head.sha256, head.records, head.owner) != (
            journal.head,
            journal.records,
            journal.owner,
        ):
            raise Corrupt(
                f"journal {journal.process} of backup {fetched.backup.id[:8]} has head"
                f" {head.sha256[:16]} at record {head.records}, saved was {journal.head[:16]} at"
                f" record {journal.records}"
            )
        reports.append(await replay(path))
    if fetched.blobs is not None:
        found = sum(1 for _ in fetched.blobs.glob("*/*"))
        if found < manifest.blobs:
            raise Corrupt(f"the backup holds {found} blobs, {manifest.blobs} were saved")
    keys: dict[str, bytes] = {}
    if manifest.key_names and password:
        sealed = await asyncio.to_thread((stage / KEYS).read_bytes)
        keys = await asyncio.to_thread(unseal, sealed, password)
        if tuple(sorted(keys)) != manifest.key_names:
            raise Unauthorised("the sealed keys are not those that the backup names")
    return Rehearsed(fetched, tuple(reports), keys)


async def replay(journal: Path) -> ReplayReport:
    """Replay a journal as the chain process would, in a process of its own.

    Raises:
        Corrupt: it does not replay.
    """
    try:
        output = await run_program(
            [sys.executable, "-m", "nodeapp.chain.replay", str(journal)],
            deadline_seconds=REPLAY_SECONDS,
            directory=Path(nodeapp.__file__).parents[1],
        )
    except NodeError as error:
        raise Corrupt(f"journal {journal.name} does not replay: {error.message}") from error
    return msgspec.json.decode(output, type=ReplayReport)
