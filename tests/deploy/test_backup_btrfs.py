"""Snapshots on a real btrfs on a loop device; backups out of them; the rule what is kept."""

import os
import shutil
import subprocess
import time

import pytest

from nodeapp.core.retention import DAY_SECONDS, Retention, age_text, kept
from nodeapp.core.session import SessionClosing
from nodeapp.service.clock import SystemClock
from nodeapp.updater.volumes import SCHEDULED, BtrfsSnapshots, CopySnapshots, btrfs_snapshots
from tests.fakes.backed_node import BackedNode
from tests.fakes.paid_session import JOB

IMAGE_BYTES = 128 << 20


def said(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        pytest.skip(f"{command[0]} is refused here: {done.stderr.strip()[-120:]}")
    return done.stdout.strip()


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A btrfs with one subvolume, as the appliance's state is."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    for program, package in (("mkfs.btrfs", "btrfs-progs"), ("mount", "mount")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt install {package})")
    directory = tmp_path_factory.mktemp("btrfs")
    image, mounted = directory / "disk.img", directory / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    said("mkfs.btrfs", "-q", image)
    mounted.mkdir()
    said("mount", "-o", "loop", image, mounted)
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True, timeout=20)


@pytest.fixture
def state(volume, tmp_path):
    """A subvolume of its own for every test."""
    path = volume / tmp_path.name
    said("btrfs", "subvolume", "create", path)
    return path


class Ticking:
    """An hour passes with every look."""

    def __init__(self) -> None:
        self.now = SystemClock().unix_seconds()

    def unix_seconds(self) -> float:
        self.now += 3600
        return self.now

    def monotonic_seconds(self) -> float:
        return self.now


async def test_a_snapshot_is_read_only_and_keeps_what_was(state):
    snapshots = await btrfs_snapshots(state, SystemClock())
    assert snapshots is not None
    (state / "a").write_text("before")
    taken = await snapshots.take("pre-1.2.0")
    (state / "a").write_text("after")
    assert (taken.path / "a").read_text() == "before"
    with pytest.raises(OSError, match="Read-only"):
        (taken.path / "a").write_text("x")
    assert [one.reason for one in snapshots.listed()] == ["pre-1.2.0"]
    # A later one does not hold the earlier one.
    later = await snapshots.take("again")
    assert list((later.path / ".snapshots" / taken.path.name).glob("*")) == []


async def test_scheduled_snapshots_go_by_the_rule_those_before_updates_by_number(state):
    snapshots = BtrfsSnapshots(state, Ticking())
    for number in range(5):
        await snapshots.take(SCHEDULED)
        await snapshots.take(f"pre-{number}")
    await snapshots.prune(Retention(last=2))
    assert [one.reason for one in snapshots.listed()] == [
        "pre-2",
        "scheduled",
        "pre-3",
        "scheduled",
        "pre-4",
    ]


async def test_the_oldest_snapshots_give_way_and_the_newest_of_each_kind_stay(state):
    snapshots = BtrfsSnapshots(state, Ticking())
    for reason in ("pre-1", SCHEDULED, SCHEDULED, "pre-2", SCHEDULED):
        await snapshots.take(reason)
    oldest_first = [one.path for one in snapshots.listed()]
    gone = [await snapshots.give_way() for _ in range(4)]
    assert gone == [*oldest_first[:3], None]
    assert [one.path for one in snapshots.listed()] == oldest_first[3:]


async def test_the_space_of_a_removed_file_comes_back_when_its_snapshots_give_way(state):
    """Before, what was removed stayed in up to eight weeks of snapshots."""
    snapshots = BtrfsSnapshots(state, Ticking())
    (state / "large").write_bytes(os.urandom(24 << 20))
    await snapshots.take(SCHEDULED)
    (state / "large").unlink()
    await snapshots.take(SCHEDULED)
    said("btrfs", "filesystem", "sync", state)
    before = snapshots.free_bytes()
    assert await snapshots.give_way() is not None
    end = time.monotonic() + 20
    while snapshots.free_bytes() - before < 20 << 20:
        assert time.monotonic() < end, "the space did not come back"
        said("btrfs", "filesystem", "sync", state)  # wakes the cleaner, then tells its work


async def test_a_directory_that_is_no_subvolume_has_no_snapshots(state, tmp_path):
    (state / "inside").mkdir()
    assert await btrfs_snapshots(state / "inside", SystemClock()) is None
    assert await btrfs_snapshots(tmp_path, SystemClock()) is None


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
async def test_a_backup_out_of_a_btrfs_snapshot_survives_the_loss_of_the_disk(state, tmp_path):
    node = BackedNode(tmp_path / "node", state=state)
    await node.start()
    # In the write-ahead log only: the snapshot is of a journal in use.
    await node.ledger.record(SessionClosing(JOB, "renter"))
    backups = await node.backups()
    assert backups.volume is not None
    await backups.volume.take("backup")  # of a process that was killed
    node.put("updater/backup-1.test/journal", b"left")
    await backups.clean()
    assert not list((state / "updater").glob("*.test"))
    made = await backups.create()
    assert made.records == 3
    assert list((state / ".snapshots").iterdir()) == []
    await node.ledger.close()
    for path in state.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    await node.repository.restore("latest", is_dry_run=False, replace=False)
    ledger = await node.open_ledger()
    assert ledger.session(JOB).phase.value == "closing"
    await ledger.close()


async def test_without_btrfs_what_cannot_be_made_again_is_copied(tmp_path):
    node = BackedNode(tmp_path)
    await node.start()
    backups = await node.backups()
    snapshots = CopySnapshots(tmp_path / "states", Ticking(), backups.fill)
    taken = [(await snapshots.take(f"pre-{number}")).path for number in range(4)]
    assert sorted((tmp_path / "states").iterdir()) == sorted(taken[1:])
    held = {str(path.relative_to(taken[-1])) for path in taken[-1].rglob("*") if path.is_file()}
    assert {"manifest.json", "journals/chain.sqlite", "settings/chain.toml"} <= held
    assert not any("key" in name or "model" in name for name in held)
    await node.ledger.close()


def test_the_newest_and_one_a_day_and_a_week_are_kept():
    monday = 4 * DAY_SECONDS
    made = [(hour, float(monday + hour * 3600)) for hour in range(24 * 21)]
    stays = kept(made, Retention(last=2, daily=3, weekly=3))
    newest = 24 * 21 - 1
    assert sorted(stays) == [
        24 * 7 - 1,
        24 * 14 - 1,
        newest - 48,
        newest - 24,
        newest - 1,
        newest,
    ]
    assert kept(made, Retention(last=0)) == {newest}
    # Days without a snapshot do not count: what is old stays until newer days replace it.
    assert kept([("older", -9e6), ("old", 0.0)], Retention(1, daily=2)) == {"old", "older"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (119, "119 s"), (600, "10 min"), (11_000, "3 h"), (2e5, "2 d")],
)
def test_ages_are_told_in_the_unit_that_fits(seconds, text):
    assert age_text(seconds) == text
