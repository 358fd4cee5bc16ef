"""Audit logs in backups: where each ended is in the manifest, and a restored log goes on from there."""

import asyncio
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nodeapp.cli.main import app
from nodeapp.core.audit import BanLifted, Head, HeadsSeen
from nodeapp.core.audit_chain import first_fault, kept_heads
from nodeapp.security.audit import read_chains
from nodeapp.service.audit import audit_root, direct_audit, steady_heads
from nodeapp.updater.audit_restoring import restored_logs
from nodeapp.updater.manifest import Manifest
from nodeapp.updater.rehearsal import Fetched
from nodeapp.updater.restic import Stored
from tests.deploy.test_backup import on_blank_disk
from tests.fakes.backed_node import BackedNode


def tell(node: BackedNode, process: str, count: int) -> None:
    audit = direct_audit(node.settings.node, process)
    for number in range(count):
        audit.record(BanLifted(f"peer:{number}"))


def logs(state):
    return read_chains(audit_root(state))


@pytest.fixture
async def node(tmp_path):
    node = BackedNode(tmp_path / "node")
    await node.start()
    tell(node, "chain", 5)
    tell(node, "p2p", 3)
    seen = HeadsSeen(steady_heads(audit_root(node.paths.state)))
    direct_audit(node.settings.node, "watchdog").record(seen)
    yield node
    await node.ledger.close()


def restored(node: BackedNode, manifest: Manifest, root: Path) -> dict[str, str]:
    """Put the node's logs back as out of a backup with that manifest; what each step says."""
    backup = Stored("0" * 64, "", "", ())
    fetched = Fetched(backup, root, None, manifest, audit_root(node.paths.state))
    found = restored_logs(fetched, root)
    said = {one.process: f"{one.step().action}: {one.detail}" for one in found}
    for one in found:
        one.carry_out("20261123T180000Z")
    return said


async def verify_with_backup(node: BackedNode):
    updater = node.settings.updater
    flags = [
        f"node.cache_dir={node.paths.cache}",
        f"updater.restic_repository={updater.restic_repository}",
        f"updater.restic_password_file={updater.restic_password_file}",
    ]
    words = ["audit", "verify", "--backup", "latest", "--state-dir", str(node.paths.state)]
    words += [word for flag in flags for word in ("--set", flag)]
    return await asyncio.to_thread(CliRunner().invoke, app, words)


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
async def test_a_restored_log_goes_on_where_it_was_saved(node, tmp_path):
    tell(node, "p2p", 2)
    made = await (await node.backups()).create()
    saved = logs(node.paths.state)
    tell(node, "chain", 4)
    assert "kept heads agree" in (await verify_with_backup(node)).stdout
    log = audit_root(node.paths.state) / "p2p/audit.jsonl"
    shutil.copy(log, tmp_path / "whole")
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    missed = (await verify_with_backup(node)).exception.message
    assert f"seen by backup {made.id[:8]}: record 5 was there, the log ends with 3" in missed
    shutil.copy(tmp_path / "whole", log)
    blank = on_blank_disk(node, tmp_path / "blank")
    await blank.restore(made.id, is_dry_run=False, replace=False)
    found = logs(tmp_path / "blank/state")
    assert {name: one.head for name, one in found.items()} == {
        name: one.head for name, one in saved.items()
    }
    tell(BackedNode(node.directory, state=tmp_path / "blank/state"), "chain", 2)
    chains = logs(tmp_path / "blank/state")
    assert (first_fault(chains), chains["chain"].head.seq) == (None, 7)
    path = tmp_path / "blank/state/audit/chain/audit.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_came_after_the_manifest_is_not_put_back(node, tmp_path):
    manifest = await (await node.backups()).fill(node.directory / "stage")
    tell(node, "chain", 4)
    assert restored(node, manifest, tmp_path / "audit")["chain"] == "create: up to record 5"
    assert read_chains(tmp_path / "audit")["chain"].head == manifest.audit["chain"]


async def test_a_log_that_is_here_is_moved_aside(node, tmp_path):
    manifest = await (await node.backups()).fill(node.directory / "stage")
    tell(BackedNode(node.directory, state=tmp_path), "p2p", 9)
    assert restored(node, manifest, tmp_path / "audit")["p2p"] == "replace: up to record 3"
    chains = read_chains(tmp_path / "audit")
    assert (first_fault(chains), chains["p2p"].head.seq) == (None, 3)
    (aside,) = (tmp_path / "audit").glob("p2p.before-restore-*")
    assert len((aside / "audit.jsonl").read_bytes().splitlines()) == 9


async def test_an_altered_log_is_told_and_put_back_as_it_is(node, tmp_path):
    log = audit_root(node.paths.state) / "chain/audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"peer:2", b"peer:7"))
    manifest = await (await node.backups()).fill(node.directory / "stage")
    said = restored(node, manifest, tmp_path / "audit")["chain"]
    assert said.startswith("create: DOES NOT HOLD: chain: audit.jsonl line 4: record 4 does not")
    assert (tmp_path / "audit/chain/audit.jsonl").read_bytes() == log.read_bytes()


async def test_records_alone_are_no_reason_for_another_backup(node):
    backups = await node.backups()
    before = await backups.fill(node.directory / "stage")
    tell(node, "updater", 1)
    after = await backups.fill(node.directory / "stage")
    assert after.audit != before.audit
    assert after.content() == before.content()


async def test_the_manifest_misses_what_was_cut_off_everywhere_on_the_machine(node):
    backups = await node.backups()
    manifest = await backups.fill(node.directory / "stage")
    kept = kept_heads((node.directory / "stage/manifest.json").read_bytes(), "a backup")
    assert manifest.audit["chain"] == Head(5, logs(node.paths.state)["chain"].head.sha256)
    root = audit_root(node.paths.state)
    assert first_fault(read_chains(root), kept) is None
    shutil.rmtree(root / "watchdog")
    log = root / "chain/audit.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    kept = [one for one in kept if one.process != "watchdog"]
    assert first_fault(read_chains(root)) is None
    assert "its end was cut off" in first_fault(read_chains(root), kept).text()


async def test_a_log_that_cannot_be_read_stops_no_backup(node):
    shutil.rmtree(audit_root(node.paths.state))
    audit_root(node.paths.state).write_text("in the way")
    manifest = await (await node.backups()).fill(node.directory / "stage")
    assert (manifest.audit, manifest.records) == ({}, 2)
