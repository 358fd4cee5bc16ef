"""What runs, told without git: package version, interpreter, boot slot of the appliance."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import nodeapp
from nodeapp.wire.ipc_updater import VersionView

OS_RELEASE = Path("/etc/os-release")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def running_version(os_release: Path = OS_RELEASE) -> VersionView:
    """Read once a call; nothing here changes while the process runs."""
    return VersionView(
        version=nodeapp.__version__,
        python=platform.python_version(),
        environment=sys.prefix,
        slot=_image_version(os_release),
    )


def boot_id(file: Path = BOOT_ID) -> str:
    """Another one after every start of the machine; "" where the kernel tells none."""
    try:
        return file.read_text("ascii").strip()
    except OSError:
        return ""


def _image_version(os_release: Path) -> str:
    """The appliance image names itself in IMAGE_VERSION (os-release(5))."""
    try:
        lines = os_release.read_text("utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition("=")
        if key == "IMAGE_VERSION":
            return value.strip().strip('"')
    return ""
