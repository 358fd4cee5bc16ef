"""The machine's logs outlive a reboot: the place for them is made under the committed unit, on a real btrfs.

Mounting it is a matter of a device that udev knows, which a container has not: the test does that by hand.
"""

import subprocess
from pathlib import Path

import pytest

from tests.image.booted import booted, require_booted
from tests.image.toolroot import room

APPLIANCE = Path(__file__).resolve().parents[2] / "appliance"
DEVICE = "/dev/disk/by-partlabel/fabstir-state"
LASTING = "0123456789abcdef0123456789abcdef"
IMAGE_BYTES = 128 << 20
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def loop(tmp_path, debian_tools):
    """A state as the first release's first boot made it: without a place for logs."""
    image = tmp_path / "state.raw"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    with room(debian_tools, {"/job": tmp_path}) as inside:
        inside.run("mkfs.btrfs", "-q", "/job/state.raw")
        inside.run("mount", "-o", "loop", "/job/state.raw", "/mnt")
        inside.run("btrfs", "-q", "subvolume", "create", "/mnt/@keys")
        inside.run("sh", "-c", f"echo {LASTING} > /mnt/@keys/machine-id")
        inside.run("umount", "/mnt")
    done = subprocess.run(
        ["losetup", "-f", "--show", image], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    yield Path(done.stdout.strip())
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True, timeout=20)


@pytest.fixture
def machine(loop, tmp_path):
    root = require_booted()
    units = tmp_path / "m" / "upper" / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    text = (APPLIANCE / "systemd" / "fabstir-log.service").read_text("utf-8")
    (units / "fabstir-log.service").write_text(
        text.replace("ConditionVirtualization=!container\n", "")
    )
    binds = {DEVICE: loop, "/opt/fabstir-node/appliance": APPLIANCE}
    with booted(root, tmp_path / "m", binds) as made:
        yield made


def boot(machine, machine_id: str) -> None:
    """What it finds at a boot."""
    machine.run("umount", "/etc/machine-id", check=False)
    (machine.root / "etc/machine-id").write_text(f"{machine_id}\n")
    done = machine.run("systemctl", "start", "fabstir-log.service", check=False)
    assert done.returncode == 0, machine.journal("fabstir-log.service")


def test_an_older_disk_gets_a_place_for_logs_and_every_boot_writes_to_one_journal(machine):
    first, second = "a" * 32, "b" * 32
    boot(machine, first)
    machine.run("mount", "-t", "btrfs", "-o", "subvol=/@log", DEVICE, "/var/log")
    journal = machine.root / "var/log/journal"
    (journal / first / "system.journal").write_text("of the first boot")
    boot(machine, second)
    assert (journal / second / "system.journal").read_text() == "of the first boot"
    assert sorted(path.name for path in journal.iterdir()) == sorted((LASTING, second))
    boot(machine, LASTING)
    assert [path.name for path in journal.iterdir()] == [LASTING]
    # Its own mount is gone with it.
    assert not list((machine.root / "run").glob("fabstir-log/*"))
    machine.run("umount", "/var/log")
