"""A machine whose state cannot be mounted, and one that hangs, under a real systemd.

On a boot that the boot loader counts both end in a reboot; on any other the machine stays up, its
owner gets in and CONFIG is left as it is.
"""

import shutil
import tempfile
import time
from pathlib import Path

import pytest

from appliance.steps.layout import APPLIANCE, layout
from tests.image.booted import booted, require_booted
from tests.provision.test_booted import SETTINGS, binds_of, fill, report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BROKEN = """\
[Unit]
DefaultDependencies=false
Before=local-fs.target
[Mount]
What=tmpfs
Where={where}
Type=tmpfs
Options=nosuchoption=1
[Install]
"""
STATE = ("/var/lib/fabstir", "/var/lib/fabstir-keys")
COUNTED = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8V9YMwLMBtpgLNh8fRr8n6c6wMvzcBvgVVz2p8JpYB me\n"


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(prefix="booted-", dir=layout().cache) as name:
        yield Path(name)


@pytest.fixture
def upper(place):
    upper = place / "upper"
    upper.mkdir()
    fill(upper)
    return upper


def until_off(machine) -> None:
    """The container asks its host for the reboot and is gone."""
    end = time.monotonic() + 60
    while Path(f"/proc/{machine.pid}").exists():
        assert time.monotonic() < end, machine.run("systemctl", "list-jobs").stdout
        time.sleep(0.2)


def test_a_trial_without_its_state_falls_back_and_any_other_boot_stays_up(place, upper):
    units = upper / "etc/systemd/system"
    required = units / "local-fs.target.requires"
    required.mkdir()
    for where in STATE:
        name = where[1:].replace("-", "\\x2d").replace("/", "-") + ".mount"
        (units / name).write_text(BROKEN.format(where=where))
        (required / name).symlink_to(units / name)
    # As on the appliance: systemd.enableEmergencyMode is off.
    for name in ("emergency.service", "emergency.target"):
        (units / name).symlink_to("/dev/null")
    medium = upper / "medium"
    (medium / "node.toml").write_text(SETTINGS)
    (medium / "authorized_keys").write_text(KEY)
    (medium / "restic.password").write_text("a secret\n")
    # The keys' directory is in memory there, as all of / is.
    (upper / "etc/fstab").write_text("tmpfs /var/lib tmpfs mode=0755 0 0\n")
    with booted(require_booted(), place, binds_of()) as machine:
        assert machine.state("local-fs.target") != "active"
        machine.until_state("fabstir-provision.service", "failed", 60)
        found = report(machine)
        assert "is not mounted" in found["findings"][0]
        assert machine.run("cat", "/run/fabstir-provision/authorized_keys").stdout == KEY
        assert (machine.root / "medium/restic.password").read_text() == "a secret\n"
        assert machine.state("fabstir-node.service") == "inactive"
        machine.run("systemctl", "start", "boot-complete.target", timeout_seconds=60)
        assert machine.state("boot-complete.target") == "active"
        machine.run("systemctl", "stop", "boot-complete.target", "fabstir-health.service")
        machine.run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/sys/firmware")
        machine.run("mkdir", "-p", str(Path(COUNTED).parent))
        (machine.root / COUNTED[1:]).write_bytes(b"\6\0\0\0")
        machine.run("systemctl", "start", "--no-block", "boot-complete.target")
        until_off(machine)


def test_a_counted_boot_that_never_completes_is_rebooted(place, upper):
    units = upper / "etc/systemd/system"
    (units / "boot-complete.target.d/test.conf").write_text("[Unit]\nJobTimeoutSec=3\n")
    (units / "hangs.service").write_text(
        "[Unit]\nBefore=boot-complete.target\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/sleep infinity\n"
    )
    (units / "boot-complete.target.requires/hangs.service").symlink_to(units / "hangs.service")
    with booted(require_booted(), place, binds_of()) as machine:
        machine.run("systemctl", "start", "--no-block", "boot-complete.target")
        until_off(machine)


def test_the_emergency_shell_of_the_initrd_gives_up(place, upper):
    units = upper / "etc/systemd/system"
    shutil.copytree(APPLIANCE / "initrd", units, dirs_exist_ok=True)
    (units / "emergency.service.d/test.conf").write_text(
        "[Service]\nExecStart=\nExecStart=-/usr/bin/sleep infinity\nRuntimeMaxSec=2\n"
    )
    with booted(require_booted(), place, binds_of()) as machine:
        machine.run("systemctl", "start", "--no-block", "emergency.target")
        until_off(machine)
