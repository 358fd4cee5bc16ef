"""The state as the appliance mounts it, on a real btrfs: the node's user keeps snapshots there."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nodeapp.provision.identities import make_identities
from nodeapp.provision.places import Account, Places, acting_as
from nodeapp.service.clock import SystemClock
from nodeapp.updater.volumes import SCHEDULED, btrfs_snapshots

FSTAB = Path(__file__).resolve().parents[2] / "appliance" / "repart" / "state.fstab"
NODE = Account(990, 990)
IMAGE_BYTES = 128 << 20


def said(*command: object) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        pytest.skip(f"{command[0]} is refused here: {done.stderr.strip()[-120:]}")


@pytest.fixture
def root():
    """Mounted as state.fstab says, new and root's as at a first boot."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("mkfs.btrfs is not installed (apt install btrfs-progs)")
    # pytest's own directories are root's alone.
    base = Path(tempfile.mkdtemp(prefix="state-"))
    base.chmod(0o755)
    image, top, root = base / "disk.img", base / "top", base / "root"
    mounted = []
    try:
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        said("mkfs.btrfs", "-q", image)
        top.mkdir()
        said("mount", "-o", "loop", image, top)
        mounted.append(top)
        lines = [line.split() for line in FSTAB.read_text("utf-8").splitlines()]
        for _, _, _, options, *_ in lines:
            said("btrfs", "-q", "subvolume", "create", f"{top}{subvolume(options)}")
        # The first mount of a file system decides on most of its options.
        said("umount", mounted.pop())
        for _, place, _, options, *_ in lines:
            target = root / place.removeprefix("/")
            target.mkdir(mode=0o755, parents=True, exist_ok=True)
            known = ",".join(one for one in options.split(",") if not one.startswith("x-"))
            said("mount", "-t", "btrfs", "-o", f"loop,{known}", image, target)
            mounted.append(target)
        yield root
    finally:
        for target in reversed(mounted):
            subprocess.run(["umount", str(target)], check=True, timeout=20)
        shutil.rmtree(base)


def subvolume(options: str) -> str:
    return next(one for one in options.split(",") if one.startswith("subvol=")).partition("=")[2]


async def test_the_nodes_user_takes_and_removes_snapshots_of_the_state(root):
    places = Places.under(root)
    make_identities(places, NODE)
    # What a command of root left: only the file system itself removes a copy of it.
    (places.state / "roots").mkdir(mode=0o700)
    (places.state / "roots" / "file").touch()
    with acting_as(NODE):
        snapshots = await btrfs_snapshots(places.state, SystemClock())
        assert snapshots is not None
        (places.state / "chain").mkdir()
        (places.state / "chain" / "journal").write_text("before")
        kept = await snapshots.take("pre-1.2.0")
        (places.state / "chain" / "journal").write_text("after")
        assert (kept.path / "chain" / "journal").read_text() == "before"
        scheduled = await snapshots.take(SCHEDULED)
        await snapshots.remove(scheduled.path)
    assert (kept.path.exists(), scheduled.path.exists()) == (True, False)
    found = places.snapshots.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (NODE.uid, NODE.gid, 0o700)


def test_a_link_in_the_place_of_the_snapshots_gives_nothing_away(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("owners are given by root")
    places = Places.under(tmp_path)
    (tmp_path / "roots-own").mkdir()
    places.state.mkdir(parents=True)
    places.snapshots.symlink_to(tmp_path / "roots-own")
    make_identities(places, NODE)
    assert (tmp_path / "roots-own").stat().st_uid == 0


AGAIN = """
import sys
from pathlib import Path
from nodeapp.provision.identities import make_identities
from nodeapp.provision.places import Account, Places
made = make_identities(Places.under(Path(sys.argv[1])), Account(990, 990))
print(made.peer_id, made)
sys.exit(not made.peer_id)
"""


def test_a_second_boot_without_the_right_to_read_others_files_has_a_peer_id_too(root):
    # The unit's bounding set has no CAP_DAC_*: a directory of mode 0700 that was handed over is shut.
    rights = "-dac_override,-dac_read_search"
    for boot in (1, 2):
        done = subprocess.run(
            ["setpriv", "--bounding-set", rights, sys.executable, "-c", AGAIN, str(root)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"boot {boot}: {done.stdout} {done.stderr[-500:]}"
