"""The update helper's unit leaves what systemd-sysupdate needs and no more: run under a real systemd.

The unit is the committed one; its program is the helper's own command, because a container has no socket's peer. The
ESP is a directory: not every kernel that tests run on has vfat.
"""

import re
import subprocess
from pathlib import Path

import pytest

from appliance.disk_image import partitions
from nodeapp.updater.helper import Tools, commands
from tests.image.booted import Booted, booted, why_not_booted
from tests.image.flashed import ESP_PATH, copied
from tests.image.releases import ROOT

UNIT = ROOT / "appliance" / "systemd" / "fabstir-update@.service"
UPDATER = 990
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def disk(factory):
    made = copied(factory.base / "first.raw", "unit.raw")
    yield made
    made.unlink()


@pytest.fixture
def loop(disk):
    done = subprocess.run(
        ["losetup", "-f", "--show", disk], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True, timeout=20)


@pytest.fixture
def machine(factory, release, loop, debian_tools, tmp_path):
    reason = why_not_booted()
    if reason:
        pytest.skip(reason)
    binds = {
        loop: Path(loop),
        "/job": factory.base,
        "/transfers": ROOT / "appliance" / "sysupdate",
    }
    with booted(debian_tools, tmp_path / "m", binds) as made:
        prepare(made, loop, release.relative_to(factory.base))
        yield made


def prepare(machine: Booted, loop: str, release: Path) -> None:
    """What the image has, and what the updater downloaded under its own account."""
    script = f"""set -eu
mkdir -p /etc/fabstir /boot/EFI/Linux /var/lib/fabstir /var/cache/fabstir
cp -r /transfers /etc/fabstir/sysupdate
sed -i 's,^Path=auto$,Path={loop},' /etc/fabstir/sysupdate/slot/*.transfer
cp /job/keyring.gpg /etc/systemd/import-pubring.gpg
cp /job/0.1.0/tree/etc/os-release /etc/os-release
cp -r /job/{release} /var/cache/fabstir/downloads
chown -R {UPDATER}:{UPDATER} /var/cache/fabstir
chmod -R go= /var/cache/fabstir
"""
    machine.run("sh", "-c", script)


def unit_running(command: list[str]) -> str:
    """The committed unit with another program, without its socket."""
    text = UNIT.read_text("utf-8")
    text = re.sub(r"^ExecStart=.*$", f"ExecStart={' '.join(command)}", text, flags=re.MULTILINE)
    text = re.sub(r"^Standard\w+=.*\n", "", text, flags=re.MULTILINE)
    named = "".join(f"Environment={key}={value}\n" for key, value in ESP_PATH.items())
    return text.replace("[Service]\n", f"[Service]\n{named}")


def start(machine: Booted, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    place = machine.root / "etc" / "systemd" / "system" / f"{name}.service"
    place.write_text(unit_running(command))
    machine.run("systemctl", "daemon-reload")
    return machine.run("systemctl", "start", name, check=False, timeout_seconds=120)


def labels(disk: Path) -> list[str]:
    with disk.open("rb") as file:
        return [one.label for one in partitions(file)]


def test_the_helper_fills_slot_and_boot_entry_under_its_unit(machine, disk, factory):
    tools = Tools(os_release=factory.base / "0.1.0" / "tree" / "etc" / "os-release")
    for verb in ("fill", "arm"):
        done = start(machine, verb, commands(verb, ["0.2.0"], tools)[0])
        assert done.returncode == 0, machine.journal(f"{verb}.service")
    assert labels(disk).count("fabstir-node_0.2.0") == 2
    found = [path.name for path in (machine.root / "boot/EFI/Linux").iterdir()]
    assert found == ["fabstir-node_0.2.0+3-0.efi"]


def test_nothing_else_of_the_system_can_be_written_or_reached(machine):
    tries = {
        "etc": "touch /etc/written",
        "usr": "touch /usr/written",
        "state": "touch /var/lib/fabstir/written",
        "mounts": "mount -t tmpfs none /mnt",
        "network": "python3 -c 'import socket; socket.socket(socket.AF_INET)'",
        "namespaces": "unshare -n true",
        "memory": "dd if=/dev/mem of=/dev/null count=1",
    }
    for name, script in tries.items():
        (machine.root / "opt" / f"{name}.sh").write_text(f"{script}\n")
        done = start(machine, f"try-{name}", ["/bin/sh", f"/opt/{name}.sh"])
        assert done.returncode != 0, f"{name} was possible"
    assert not (machine.root / "etc" / "written").exists()
