"""Journals of other versions; the schedule, what it tells people and counts, and its failures."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import Corrupt, InvalidRequest, Unauthorised, Unavailable
from nodeapp.security.envelope import seal, unseal
from nodeapp.service.clock import SystemClock
from nodeapp.service.lifecycle import Shell
from nodeapp.service.metrics import Metrics
from nodeapp.store.backups import copy_closed, head_of, restore_backup
from nodeapp.updater.backup_rounds import BackupRounds
from nodeapp.updater.command import run_program
from nodeapp.updater.rehearsal import Fetched, rehearse
from nodeapp.updater.restic import Stored, environment_of
from nodeapp.updater.snapshots import Snapshots
from nodeapp.updater.staging import fill_stage, node_files
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_updater import StateSnapshotRequest
from tests.fakes.backed_node import BackedNode, ChainOwner
from tests.fakes.paid_session import HOST, JOB

OLD = Path(__file__).parents[1] / "reliability/journals/schema1.sql"
PASSWORD = b"four words of recovery"


def old_journal(directory: Path) -> Path:
    path = directory / "old.db"
    with closing(sqlite3.connect(path)) as book:
        book.executescript(OLD.read_text("utf-8"))
    return copy_closed(path, directory / "copies").path


def staged(node: BackedNode, journal: Path, stage: Path) -> Fetched:
    manifest = fill_stage(
        stage,
        {"chain": journal},
        node_files(node.settings, node.paths),
        conf=node.paths.state / "conf",
        password=PASSWORD,
        made_at=1,
        source="copy",
    )
    return Fetched(Stored("0" * 64, "", HOST, (stage,)), stage, None, manifest)


async def test_a_backup_of_an_older_node_is_replayed_restored_and_migrated(tmp_path):
    node = BackedNode(tmp_path)
    fetched = staged(node, old_journal(tmp_path), tmp_path / "stage")
    assert fetched.manifest.journals[0].schema == 1
    tested = await rehearse(fetched, PASSWORD)
    assert tested.reports[0].unsettled == 2
    assert sorted(tested.keys) == ["chain/keystore", "chain/password"]
    place = tmp_path / "restored.db"
    restore_backup(fetched.stage / "journals/chain.sqlite", place)
    # The mark of a restore is no part of what the head covers.
    assert head_of(place).sha256 == fetched.manifest.journals[0].head
    ledger = await Ledger.open(place, owner=HOST, marker=tmp_path / "marker")
    assert ledger.session(JOB).acknowledged == 250
    assert ledger.is_restored
    await ledger.close()


async def test_a_journal_of_a_newer_node_says_what_to_do(tmp_path):
    node = BackedNode(tmp_path)
    journal = old_journal(tmp_path)
    with closing(sqlite3.connect(journal)) as book:
        book.execute("PRAGMA user_version = 99")
    with pytest.raises(Corrupt, match=r"schema 99.*update the node first"):
        head_of(journal)
    with pytest.raises(Corrupt, match="altered"):
        staged(node, journal, tmp_path / "stage")


async def test_a_missing_keystore_fails_the_backup_instead_of_being_left_out(tmp_path):
    node = BackedNode(tmp_path)
    node.keystore.unlink()
    with pytest.raises(Unavailable, match=r"chain/keystore\) is missing"):
        staged(node, old_journal(tmp_path), tmp_path / "stage")


def test_an_envelope_opens_with_its_password_only_and_unaltered():
    sealed = seal({"a": b"1", "b": b""}, PASSWORD)
    assert unseal(sealed, PASSWORD) == {"a": b"1", "b": b""}
    for broken in (sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:40]):
        with pytest.raises(Unauthorised):
            unseal(broken, PASSWORD)
    with pytest.raises(Unauthorised):
        unseal(sealed, PASSWORD + b"x")
    with pytest.raises(Corrupt):
        unseal(b"something else", PASSWORD)
    with pytest.raises(InvalidRequest, match="at least 12"):
        seal({}, b"short")


def test_restics_keys_come_from_a_file_and_never_into_a_message(tmp_path):
    file = tmp_path / "s3.env"
    file.write_text("# S3\nAWS_ACCESS_KEY_ID=id\n\nAWS_SECRET_ACCESS_KEY=a=b\n")
    assert environment_of(file) == {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "a=b"}
    file.write_text("AWS_ACCESS_KEY_ID=id\nthe-secret-itself\n")
    with pytest.raises(InvalidRequest, match="line 2 is not NAME=VALUE") as told:
        environment_of(file)
    assert "secret" not in told.value.message


async def test_a_program_that_fails_or_hangs_is_unavailable():
    with pytest.raises(Unavailable, match=r"sh failed with code 3: what went wrong"):
        await run_program(["/bin/sh", "-c", "echo what went wrong >&2; exit 3"], deadline_seconds=5)
    with pytest.raises(Unavailable, match=r"sleep did not end inside 0\.05 s"):
        await run_program(["/bin/sleep", "60"], deadline_seconds=0.05)


async def nothing_to_hold(_reason: str) -> None:
    raise AssertionError("nobody has to decide anything")


@pytest.fixture
async def rounds(tmp_path):
    """An updater's backups whose repository cannot be made: its place is a file."""
    (tmp_path / "repository").write_text("in the way")
    node = BackedNode(tmp_path, backup_interval_seconds=0.05)
    await node.start()
    shell = Shell("updater", node.settings.node, node.paths, Metrics("updater"), SystemClock())
    source = Snapshots(ChainOwner(node.ledger), node.paths.state / "snapshots", keep=2)
    yield BackupRounds(shell, node.settings.updater, {"chain": source}, nothing_to_hold), shell
    await node.ledger.close()


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
async def test_failed_backups_are_told_counted_and_tried_again(rounds):
    part, shell = rounds

    async def failures() -> float:
        text = shell.metrics.render().decode()
        lines = [one for one in text.splitlines() if 'backups_total{outcome="failed"}' in one]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        started = tasks.create_task(_until_cancelled(part))
        while await failures() < 2:
            await asyncio.sleep(0.02)
        started.cancel()
    assert part.summary().startswith("no good backup yet, backup failed: restic")


async def _until_cancelled(part: BackupRounds) -> None:
    async with asyncio.TaskGroup() as tasks:
        await part.start(tasks)
        await asyncio.Event().wait()


async def test_without_a_repository_a_backup_is_refused_and_the_state_is_copied(tmp_path):
    node = BackedNode(tmp_path, restic_repository="")
    await node.start()
    shell = Shell("updater", node.settings.node, node.paths, Metrics("updater"), SystemClock())
    source = Snapshots(ChainOwner(node.ledger), node.paths.state / "snapshots", keep=2)
    part = BackupRounds(shell, node.settings.updater, {"chain": source}, nothing_to_hold)
    assert part.summary() == ""
    with pytest.raises(InvalidRequest, match="restic_repository is not set"):
        await part.create(Empty())
    kept = await part.keep_state(StateSnapshotRequest("pre-1.2.0"))
    assert (Path(kept.path) / "journals/chain.sqlite").is_file()
    with pytest.raises(InvalidRequest, match="cannot name a snapshot"):
        await part.keep_state(StateSnapshotRequest("../x"))
    await node.ledger.close()
