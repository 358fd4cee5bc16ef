"""A flashed disk after its first boot, updated by the helper's own commands on the real tools.

Slot A runs, slot B is empty, the ESP is a vfat mounted at /boot (by FUSE: not every kernel that
tests run on has vfat). The transfers are the committed ones but for two lines: Path=auto asks which
disk /usr is on, and here that is the machine's; Mode=, which FUSE's vfat cannot set.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from appliance.disk_image import Damaged, check_bootable, partitions
from nodeapp.updater.boot_entries import others
from nodeapp.updater.helper import Tools, commands
from tests.image.disks import Fat
from tests.image.releases import ROOT, Factory
from tests.image.toolroot import Room

TRANSFERS = ROOT / "appliance" / "sysupdate"
DISK_BYTES = 6 << 30
ESP_PATH = {"SYSTEMD_ESP_PATH": "/boot", "SYSTEMD_RELAX_ESP_CHECKS": "1"}
VERSION = "0.1.0"
SYSUPDATE = "/usr/lib/systemd/systemd-sysupdate"


def first_boot(factory: Factory, disk: Path) -> None:
    """Flash release 0.1.0 onto a larger disk and let the device's definitions complete it."""
    flash = factory.make(VERSION).parent / "disk.raw"
    inside = factory.inside
    subprocess.run(["cp", "--sparse=always", flash, disk], check=True)
    os.truncate(disk, DISK_BYTES)
    with looped(inside, _at(factory, disk)) as loop:
        inside.run(
            "systemd-repart", "--dry-run=no", "--seed=b5a0f7fc-5d0f-4b43-9c1e-0d1f2b6ee7a4",
            "--definitions=/device", loop,
        )  # fmt: skip


def _at(factory: Factory, path: Path) -> str:
    return f"/job/{path.relative_to(factory.base)}"


@contextlib.contextmanager
def looped(inside: Room, file: str, *options: str) -> Iterator[str]:
    """The file as a block device."""
    device = inside.run("losetup", "-f", "--show", *options, file).stdout.strip()
    try:
        yield device
    finally:
        inside.run("losetup", "-d", device, check=False)


@dataclass
class Flashed:
    """The machine; `loop` is its disk."""

    inside: Room
    loop: str
    tools: Tools

    def offer(self, release: Path) -> None:
        """What the updater downloaded lies where the transfers look for it."""
        place = Path("/var/cache/fabstir/downloads")
        self.inside.run("rm", "-rf", str(place))
        self.inside.run("mkdir", "-p", str(place.parent))
        self.inside.run("cp", "-r", f"/job/{release}", str(place))

    def verb(self, verb: str, version: str, *, check: bool = True) -> subprocess.CompletedProcess:
        """What the helper runs for it; not its calls of the boot loader, which has no variables."""
        if verb == "fill":
            self._forget_others()
        ran: Sequence[str] = commands(verb, [version], self.tools)[0]
        return self.inside.run(*ran, check=check, environment=ESP_PATH)

    def _forget_others(self) -> None:
        """As `forget_others` does it: the ESP is mounted in the room only."""
        place = "/boot/EFI/Linux"
        _name, running = self.tools.os_release.read_text().split("IMAGE_VERSION=")
        for name in others(self.inside.run("ls", place).stdout.split(), running.strip()):
            self.inside.run("rm", f"{place}/{name}")

    def runs(self, version: str) -> None:
        """It was booted into this one."""
        place = self.tools.os_release.parents[3] / version / "tree/etc/os-release"
        self.inside.run("cp", f"/job/{version}/tree/etc/os-release", "/etc/os-release")
        self.tools = replace(self.tools, os_release=place)

    def update(self, version: str, *, check: bool = True) -> subprocess.CompletedProcess:
        """Slot, then boot entry, if the slot could be filled."""
        done = self.verb("fill", version, check=check)
        return done if done.returncode else self.verb("arm", version, check=check)


@contextlib.contextmanager
def flashed(factory: Factory, disk: str) -> Iterator[Flashed]:
    """Attach a disk (a file below the factory's directory) and mount its ESP."""
    inside, base = factory.inside, factory.base
    with looped(inside, f"/job/{disk}") as loop:
        inside.run("mkdir", "-p", "/boot", "/etc/fabstir")
        inside.run("rm", "-rf", "/etc/fabstir/sysupdate")
        inside.run("cp", "-r", "/transfers", "/etc/fabstir/sysupdate")
        for name in ("10-verity", "20-store"):
            path = f"/etc/fabstir/sysupdate/slot/{name}.transfer"
            inside.run("sed", "-i", f"s,^Path=auto$,Path={loop},", path)
        boot = "/etc/fabstir/sysupdate/boot/30-uki.transfer"
        inside.run("sed", "-i", "/^Mode=/d", boot)
        inside.run("cp", "/job/keyring.gpg", "/etc/systemd/import-pubring.gpg")
        inside.run("cp", f"/job/{VERSION}/tree/etc/os-release", "/etc/os-release")
        tools = Tools(sysupdate=SYSUPDATE, os_release=base / VERSION / "tree/etc/os-release")
        esp = ("-o", str(1 << 20), "--sizelimit", str(512 << 20))
        with looped(inside, loop, *esp) as partition:
            inside.run("fusefat", "-o", "rw+", partition, "/boot")
            try:
                yield Flashed(inside, loop, tools)
            finally:
                inside.run("umount", "/boot")
                inside.run("sync")


def entries(disk: Path) -> dict[str, bytes]:
    """The UKIs on the ESP."""
    with disk.open("rb") as file:
        (esp,) = (one for one in partitions(file) if one.type == "esp")
        found = Fat(file, esp.offset).files("/EFI/Linux")
    return {name: body for name, body in found.items() if name.endswith(".efi")}


def bootable(disk: BinaryIO, kernels: dict[str, bytes]) -> set[str]:
    """Those whose store is there, whole under their own usrhash."""
    found = set()
    for name, kernel in kernels.items():
        with contextlib.suppress(Damaged):
            check_bootable(disk, kernel)
            found.add(name)
    return found


def bootable_on(disk: Path) -> set[str]:
    """As bootable, of a disk at rest."""
    with disk.open("rb") as file:
        return bootable(file, entries(disk))


def copied(disk: Path, name: str) -> Path:
    """A copy to spoil, beside it."""
    target = disk.with_name(name)
    subprocess.run(["cp", "--sparse=always", disk, target], check=True)
    return target


def duplicate(release: Path, name: str) -> Path:
    """A copy of a release to spoil, beside its own directory."""
    target = release.parent.with_name(name)
    shutil.copytree(release, target)
    return target
