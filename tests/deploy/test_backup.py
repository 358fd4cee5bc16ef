"""A backup counts when it was restored and replayed; a restore never costs a token or a file."""

import asyncio
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import Corrupt, InvalidRequest, Rejected, Unauthorised, Unavailable
from nodeapp.core.session import SessionClosing
from nodeapp.updater.drill import Repository
from nodeapp.updater.manifest import MANIFEST, read_manifest
from nodeapp.updater.rehearsal import fetch, rehearse
from nodeapp.updater.restic import open_restic
from nodeapp.updater.restoring import carry_out, plan_restore
from nodeapp.updater.staging import node_files
from nodeapp.wire.ipc_updater import BackupView
from tests.fakes.backed_node import PASSWORD, BackedNode
from tests.fakes.paid_session import HOST, JOB

ROOT = Path(__file__).resolve().parents[2]
needs_restic = pytest.mark.skipif(
    shutil.which("restic") is None, reason="restic is not installed (apt install restic)"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A node that was backed up once: restic takes about a second a call, so all tests share it."""

    async def save() -> BackupView:
        node = BackedNode(directory)
        await node.start()
        backups = await node.backups()
        made = await backups.create()
        same = await backups.create(only_if_changed=True)
        assert (same.id, same.is_new, same.bytes_added) == (made.id, False, 0)
        await node.ledger.close()
        return made

    directory = tmp_path_factory.mktemp("saved")
    return directory, asyncio.run(save())


@pytest.fixture
async def node(tmp_path, saved):
    """A copy of that node with a repository of its own."""
    shutil.copytree(saved[0], tmp_path / "node")
    # It names the first one's journal: a node started beside it by a copy of its key is refused.
    (tmp_path / "node/etc/host.json.journal").unlink()
    node = BackedNode(tmp_path / "node")
    await node.start()
    yield node
    await node.ledger.close()


def on_blank_disk(node: BackedNode, directory: Path) -> Repository:
    """Other hardware: another state directory, keys elsewhere, only the two passwords."""
    change = msgspec.structs.replace
    chain = change(
        node.settings.chain,
        keystore_file=str(directory / "keys/wallet.json"),
        password_file=str(directory / "keys/wallet.password"),
    )
    own = change(node.settings.node, state_dir=str(directory / "state"))
    return Repository(change(node.settings, node=own, chain=chain), node.repository.clock)


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@needs_restic
async def test_a_backup_is_restored_on_a_blank_disk_with_other_paths(node, saved, tmp_path):
    made = saved[1]
    assert (made.records, made.sessions, made.has_keys, made.is_new) == (2, 1, True, True)
    blank = on_blank_disk(node, tmp_path / "blank")
    shown = await blank.restore("latest", is_dry_run=True, replace=False)
    assert not (tmp_path / "blank").exists()
    assert {step.action for step in shown.steps} == {"create"}
    assert "2 records, 1 sessions, 1 unsettled" in shown.steps[0].detail
    await blank.restore(made.id[:8], is_dry_run=False, replace=False)
    found = files_below(tmp_path / "blank")
    assert found["keys/wallet.json"] == node.keystore.read_bytes()
    assert found["keys/wallet.password"] == PASSWORD.encode()
    assert found["state/p2p/identity.key"] == b"identity-secret"
    assert found["state/s5/blobs/aa/aa01"] == b"transcript"
    assert not any("model" in name for name in found)
    beside = tmp_path / "blank/keys/wallet.json.journal"
    ledger = await Ledger.open(blank.paths.journal, owner=HOST, marker=beside)
    assert ledger.sessions == node.ledger.sessions
    assert ledger.is_restored
    await ledger.close()


@needs_restic
async def test_a_changed_node_is_backed_up_and_old_backups_are_forgotten(node, saved):
    backups = await node.backups()
    await node.ledger.record(SessionClosing(JOB, "renter"))
    one_only = replace(
        backups, settings=msgspec.structs.replace(node.settings.updater, keep_last=1)
    )
    made = await one_only.create(only_if_changed=True)
    assert (made.is_new, made.records) == (True, saved[1].records + 1)
    stored = await open_restic(node.settings.updater, node.paths.cache).stored()
    assert [one.id[:8] for one in stored] == [made.id[:8]]


@needs_restic
async def test_keys_are_sealed_apart_and_open_with_the_recovery_password_only(node, tmp_path):
    restic = open_restic(node.settings.updater, node.paths.cache)
    fetched = await fetch(restic, await restic.one("latest"), tmp_path / "all", with_blobs=True)
    stored = b"".join(files_below(tmp_path / "all").values())
    for secret in (node.keystore.read_bytes(), PASSWORD.encode(), b"identity-secret"):
        assert secret not in stored
    with pytest.raises(Unauthorised, match="recovery password"):
        await rehearse(fetched, b"another recovery password")
    manifest = (fetched.stage / MANIFEST).read_bytes()
    (fetched.stage / MANIFEST).write_bytes(manifest.replace(b'"records": 2', b'"records": 1'))
    with pytest.raises(Corrupt, match=r"saved was .* at record 1"):
        await rehearse(replace(fetched, manifest=read_manifest(fetched.stage)), b"")
    (fetched.stage / "journals/chain.sqlite").write_bytes(b"altered")
    with pytest.raises(Corrupt, match=r"journals/chain\.sqlite was altered"):
        await rehearse(fetched, b"")


@needs_restic
async def test_a_restore_needs_a_stopped_node_and_moves_aside_what_it_replaces(node):
    await node.ledger.record(SessionClosing(JOB, "renter"))
    node.keystore.write_text("another key")
    repository, paths = node.repository, node.paths
    async with repository.tested("latest") as (tested, scratch):
        files = node_files(node.settings, paths)
        plan = plan_restore(tested, files, paths, now=0.0, scratch=scratch / "present")
        with pytest.raises(Rejected, match="--replace"):
            carry_out(plan, paths, replace=False, stamp="T1Z")
        with pytest.raises(Rejected, match="needs a stopped node"):
            carry_out(plan, paths, replace=True, stamp="T1Z")
        await node.ledger.close()
        carry_out(plan, paths, replace=True, stamp="T1Z")
    assert "here: 3 records" in plan.preview.steps[0].detail
    assert [step.what for step in plan.preview.steps if step.action == "replace"] == [
        "journal of chain",
        "key chain/keystore",
    ]
    (old,) = node.keystore.parent.glob("host.json.before-restore-T1Z")
    assert old.read_text() == "another key"
    (journal,) = node.paths.journal.parent.glob("journal.db.before-restore-T1Z")
    assert journal.stat().st_size > 0
    ledger = await node.open_ledger()
    assert ledger.session(JOB).phase.value == "active"
    await ledger.close()


@needs_restic
async def test_a_damaged_repository_is_told_and_never_counts(node, saved):
    for pack in (node.directory / "repository/data").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            content = bytearray(pack.read_bytes())
            content[::16] = bytes(byte ^ 1 for byte in content[::16])
            pack.write_bytes(content)
    with pytest.raises((Unavailable, Corrupt)):
        await node.repository.drill("latest")
    backups = await node.backups()
    await node.ledger.record(SessionClosing(JOB, "renter"))
    with pytest.raises((Unavailable, Corrupt)):
        # What restic believes to be stored already is what was damaged.
        await backups.create()
    assert backups.last_good().id == saved[1].id
    assert not (node.paths.process_state("updater") / "stage").exists()


@needs_restic
async def test_a_wrong_repository_password_is_told(node):
    Path(node.settings.updater.restic_password_file).write_text("wrong")
    with pytest.raises(Unavailable, match="password"):
        await node.repository.drill("latest")


def test_a_newer_backup_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / MANIFEST).write_text('{"format": 9, "node_version": "9.9", "unheard": 1}')
    with pytest.raises(Corrupt, match=r"format 9 \(node 9.9\).*update the node first"):
        read_manifest(tmp_path)


def test_a_missing_setting_names_it(tmp_path):
    node = BackedNode(tmp_path, restic_password_file="")
    with pytest.raises(InvalidRequest, match="restic_password_file is not set"):
        open_restic(node.settings.updater, tmp_path)


@needs_restic
async def test_a_drill_by_command_restores_everything_and_leaves_nothing(node, saved):
    updater = node.settings.updater
    before = files_below(node.paths.state)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nodeapp.cli.main", "backup", "drill"),
            *("--state-dir", str(node.paths.state)),
            *("--set", f"node.cache_dir={node.paths.cache}"),
            *("--set", f"updater.restic_repository={updater.restic_repository}"),
            *("--set", f"updater.restic_password_file={updater.restic_password_file}"),
            *("--set", f"updater.recovery_password_file={updater.recovery_password_file}"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"backup {saved[1].id[:8]} of {HOST}" in done.stdout
    assert "drill passed: 1 journals replayed, 3 keys, 1 blobs" in done.stdout
    after = files_below(node.paths.state)
    assert after.pop("audit/operator/lock") == b""
    assert b'"action":"drill","id":"latest","outcome":"done"' in after.pop(
        "audit/operator/audit.jsonl"
    )
    assert after == before
