"""A paid node loses its disk and its keys, comes back out of the repository, and earns on."""

import json
import shutil
from pathlib import Path

import pytest

from nodeapp.renter.events import AnswerEnded, SessionPaid
from tests.world import Started, World, as_toml, started_devnet, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed"),
]
TOKENS = 220
COUNTING = "Write the numbers from 1 to 100, separated by commas."


def backup(world: World, name: str, *arguments: object) -> str:
    done = Started(world.directory, name, "backup", *arguments, "--config", world.node_file)
    assert done.finish(120) == 0, done.err
    return done.out


def with_repository(world: World) -> None:
    """In a place that outlives the node's disk."""
    safe = world.directory / "safe"
    safe.mkdir()
    for name in ("restic.password", "recovery.password"):
        (safe / name).write_text(f"{name} of a test\n")
    values = world.node_values
    values["updater"] = {
        "restic_repository": str(safe / "repository"),
        "restic_password_file": str(safe / "restic.password"),
        "recovery_password_file": str(safe / "recovery.password"),
    }
    world.node_file.write_text(as_toml(values))


def test_a_node_on_a_blank_disk_serves_again_and_claims_nothing_twice(tmp_path: Path):
    with started_devnet(tmp_path) as world:
        with_repository(world)
        node = world.start_node()
        node.until_said("node ready", 90)
        renter = world.renter("before")
        chat = renter.chat(COUNTING, "--max-tokens", TOKENS)
        job_id = chat.until_event(SessionPaid, 60).job_id
        chat.until_tokens(30, 60)
        made = backup(world, "create", "create")
        assert "with keys, restored for a test and replayed" in made
        assert world.metric("updater", "fabstir_updater_backup_last_good_timestamp_seconds") > 0
        assert "last good backup 0 s ago" in world.status()["updater"].detail or (
            "last good backup" in world.status()["updater"].detail
        )
        # What follows is unknown to the backup: the rest of the answer, its claims, the end.
        assert chat.finish(120) == 0, chat.err
        settled = world.until_settled(job_id, 90)
        assert settled.tokens_used == TOKENS
        assert node.stop() == 0
        chain = world.node_values["chain"]
        assert isinstance(chain, dict)
        lost = [Path(chain["keystore_file"]), Path(chain["password_file"])]
        shutil.rmtree(world.paths.state)
        for path in lost:
            path.unlink()
            path.with_name(f"{path.name}.journal").unlink(missing_ok=True)
        shown = backup(world, "preview", "restore", "latest", "--dry-run")
        assert "1 unsettled" in shown
        assert not world.paths.state.exists()
        backup(world, "restore", "restore", "latest")
        assert all(path.exists() for path in lost)
        world.start_node().until_said("node ready", 90)
        after = world.on_chain(job_id)
        assert after == settled
        until(
            lambda: world.detail(job_id).session.phase == "completed",
            "the restored ledger knows that the session ended",
        )
        again = world.renter("after").chat(COUNTING, "--max-tokens", TOKENS)
        assert again.finish(120) == 0, again.err
        job = world.until_settled(again.one(AnswerEnded).job_id, 90)
        assert job.tokens_used == TOKENS
        assert job.host_share + job.treasury_share + job.refund == job.deposit
        assert world.on_chain(job_id) == settled
        report = json.loads(backup(world, "drill", "drill", "--json"))
        assert report["journals"][0]["unsettled"] == 1
        assert world.node is not None
        assert world.node.stop() == 0


def test_a_replaced_disk_serves_and_signs_nothing_until_it_is_restored(tmp_path: Path):
    with started_devnet(tmp_path) as world:
        with_repository(world)
        node = world.start_node()
        node.until_said("node ready", 90)
        chat = world.renter("before").chat(COUNTING, "--max-tokens", TOKENS)
        assert chat.finish(120) == 0, chat.err
        job_id = chat.one(AnswerEnded).job_id
        backup(world, "create", "create")
        listed = backup(world, "list", "list").splitlines()[-1]
        assert node.stop() == 0
        # Wallet and settings come with CONFIG; everything else was on the disk.
        shutil.rmtree(world.paths.state)
        for marker in tmp_path.rglob("*.journal"):
            marker.unlink()
        node = world.start_node()
        node.until_said("node ready", 90)
        until(
            lambda: "HELD" in world.status()["chain"].detail,
            "the chain process was told to wait",
            seconds=150,
        )
        assert "backup restore latest" in world.status()["updater"].detail
        assert world.metric("updater", "fabstir_updater_backup_needs_operator") == 1
        assert node.stop() == 0
        assert backup(world, "list again", "list").splitlines()[-1] == listed
        backup(world, "restore", "restore", "latest", "--replace")
        world.start_node().until_said("node ready", 90)
        made = backup(world, "create again", "create")
        assert "with keys, restored for a test and replayed" in made
        assert "HELD" not in world.status()["chain"].detail
        assert world.until_settled(job_id, 90).tokens_used == TOKENS
        assert world.node is not None
        assert world.node.stop() == 0
