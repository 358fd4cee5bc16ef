"""A Debian 13 root with the tools that the image is built and tested with, whatever runs here.

    with room(tool_root(), {"/job": tmp_path}) as inside:
        inside.run("systemd-repart", "--version")

The root is made once by set-up (appliance/steps/debian.py, or `python -m tests.image.toolroot
[--qemu]`) and never written again: a room is an overlay over it in a mount namespace of its own, which ends with
the process that opened it. Loop devices belong to the machine: give back what you take.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.steps.console import step
from appliance.steps.debian import MACHINE, TOOLS, debian_path, ensure_debian
from appliance.steps.layout import layout

COMMAND = "python -m tests.image.toolroot"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
OPEN = """set -eu
root=$1 place=$2
shift 2
mount -t tmpfs -o mode=0755 room "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work" room "$place/root"
cd "$place/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
if [ -e /etc/resolv.conf ]; then cat /etc/resolv.conf > etc/resolv.conf; fi
while [ $# -gt 0 ]; do
  if [ -d "$2" ]; then mkdir -p "./$1"; else mkdir -p "./${1%/*}"; : >> "./$1"; fi
  mount --rbind "$2" "./$1"
  shift 2
done
echo open
exec cat >/dev/null
"""


def told(
    command: Sequence[str], environment: Mapping[str, str], timeout_seconds: float, *, check: bool
) -> subprocess.CompletedProcess[str]:
    """Run to its end; with `check` a failure shows what was said."""
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if check and done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"[-3000:]
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done


@dataclass(frozen=True, slots=True)
class Room:
    """Commands run in it; all of them see the same files."""

    pid: int
    root: Path

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout_seconds: float = 50,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; a failure shows what it said."""
        environment = {**ENVIRONMENT, **(environment or {})}
        return told(self.command(*command), environment, timeout_seconds, check=check)

    def command(self, *command: str | Path) -> list[str]:
        """What to start from outside, for a process that is to live longer than a call."""
        enter = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "chroot", str(self.root)]
        return enter + [str(word) for word in command]


@contextmanager
def room(root: Path, binds: Mapping[str, Path] | None = None) -> Iterator[Room]:
    """Open a room over a root.

    Args:
        root: one of tool_root, qemu_root, or any root directory.
        binds: place inside → file or directory outside, writable.
    """
    place = layout().cache / "room"
    place.mkdir(parents=True, exist_ok=True)
    pairs = [str(word) for inside, outside in (binds or {}).items() for word in (inside, outside)]
    holder = subprocess.Popen(
        [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            OPEN,
            "room",
            root,
            place,
            *pairs,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if holder.stdin is None or holder.stdout is None or holder.stderr is None:
        raise AssertionError("no pipes")
    try:
        if holder.stdout.readline() != "open\n":
            raise AssertionError(f"no room over {root}: {holder.stderr.read()}")
        yield Room(holder.pid, place / "root")
    finally:
        # It reads its standard input to the end, so it ends with this process, too.
        holder.stdin.close()
        holder.wait(timeout=10)
        holder.stdout.close()
        holder.stderr.close()


def tool_root() -> Path:
    """The root with TOOLS; made when it is missing."""
    return _root(TOOLS)


def qemu_root() -> Path:
    """The root with TOOLS and a virtual machine's; made when it is missing."""
    return _root(MACHINE)


def why_not(packages: tuple[str, ...] = TOOLS) -> str:
    """What keeps the tools from being used here; "" when nothing does."""
    if os.geteuid() != 0:
        return "rooms and loop devices need root"
    if not debian_path(layout(), packages).is_dir():
        return f"no tool root yet: run `{COMMAND}{' --qemu' if packages != TOOLS else ''}`"
    if not Path("/dev/loop-control").exists():
        return "no loop devices here"
    for command, what in (
        (["unshare", "-m", "--propagation", "private", "true"], "mount namespaces"),
        (["losetup", "-f"], "free loop device"),
    ):
        tried = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if tried.returncode:
            return f"no {what} here: {tried.stderr.strip()}"
    return ""


def require_tools(packages: tuple[str, ...] = TOOLS) -> Path:
    """For a fixture: the root, or a skip that says why.

    FABSTIR_SYSUPDATE_ROOT names another Debian root that has these packages.
    """
    chosen = os.environ.get("FABSTIR_SYSUPDATE_ROOT")
    if chosen:
        return Path(chosen)
    reason = why_not(packages)
    if reason:
        pytest.skip(reason)
    return debian_path(layout(), packages)


def _root(packages: tuple[str, ...]) -> Path:
    place = debian_path(layout(), packages)
    if place.is_dir():
        return place
    with step("Debian root of the image's tools") as status:
        return ensure_debian(layout(), status, packages)


if __name__ == "__main__":
    print(qemu_root() if "--qemu" in sys.argv[1:] else tool_root())
