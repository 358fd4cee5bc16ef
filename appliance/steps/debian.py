"""A Debian 13 root with the tools that images are built and tested with, whatever runs here.

Made once by mmdebstrap under a key of its packages; never written again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from appliance.steps.console import SetupFailure, Status
from appliance.steps.layout import Layout, digest, made_atomically
from appliance.steps.run import run

SUITE = "trixie"
# One line a purpose; a change makes a new root beside the old one.
TOOLS = (
    *("ca-certificates", "python3", "jq", "git", "openssl", "gnupg", "xz-utils", "zstd"),
    *("systemd", "systemd-repart", "systemd-ukify", "systemd-boot-efi", "systemd-boot-tools"),
    *("systemd-container", "systemd-cryptsetup", "udev", "cryptsetup-bin", "dmsetup", "mount"),
    *("dosfstools", "mtools", "btrfs-progs", "erofs-utils", "squashfs-tools", "e2fsprogs", "fdisk"),
    *("nix-bin", "restic", "qemu-utils", "fusefat", "fuse3"),
)
MACHINE = (*TOOLS, "qemu-system-x86", "ovmf", "swtpm", "swtpm-tools")
LEFT_OUT = ("man", "locale", "doc", "info")


def debian_path(places: Layout, packages: tuple[str, ...] = TOOLS) -> Path:
    """Where a root with these packages is kept."""
    return places.cache / f"debian-13-{digest(SUITE, *sorted(packages))}"


def can_be_made() -> bool:
    """Only root may, with mmdebstrap."""
    return os.geteuid() == 0 and shutil.which("mmdebstrap") is not None


def ensure_debian(places: Layout, status: Status, packages: tuple[str, ...] = TOOLS) -> Path:
    """Make it when it is missing; a second caller waits for the first.

    Raises:
        SetupFailure: not root, no mmdebstrap, or it failed.
    """
    place = debian_path(places, packages)
    if place.is_dir():
        return place
    if not can_be_made():
        raise SetupFailure("a Debian root needs root and mmdebstrap (apt-get install mmdebstrap)")
    places.cache.mkdir(parents=True, exist_ok=True)
    with (places.cache / "debian-13.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            with made_atomically(place) as made:
                _make(made, packages, status)
    return place


def _make(target: Path, packages: tuple[str, ...], status: Status) -> None:
    command = [
        *("mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"),
        *("--aptopt=Acquire::Languages none", "--dpkgopt=force-unsafe-io"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
        *(SUITE, str(target)),
    ]
    run(status, command, what="mmdebstrap")
