"""A Debian 13 with a real systemd as its first process, in a container, without a virtual machine.

    with booted(tool_root(), tmp_path, {"/source": ROOT}) as machine:
        machine.run("systemctl", "is-active", "fabstir-node")

systemd-nspawn (nspawn.py) over an overlay of the root: nothing is written to the root. The network is the host's, so
a chain or a renter outside reaches it on loopback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image.nspawn import (
    BOOT_SECONDS,
    ENVIRONMENT,
    IN_GROUP,
    Running,
    in_new_namespace,
    nspawn,
    started,
)
from tests.image.toolroot import require_tools, told

OPEN = f"""{IN_GROUP}
root=$1 place=$2
shift 2
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir -p "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work" room "$place/root"
: > "$place/root/etc/machine-id"
cat /etc/resolv.conf > "$place/root/etc/resolv.conf"
exec "$@"
"""
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer", "console-getty.service")


@dataclass(frozen=True, slots=True)
class Booted:
    """The running container."""

    running: Running

    @property
    def pid(self) -> int:
        """Its first process as seen from outside."""
        return self.running.pid

    @property
    def root(self) -> Path:
        """Its files as seen from outside: the overlay is seen from inside only."""
        return Path(f"/proc/{self.pid}/root")

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout_seconds: float = 50,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end, inside; a failure shows what it said."""
        environment = {**ENVIRONMENT, **(environment or {})}
        return told(self.running.inside(*command), environment, timeout_seconds, check=check)

    def state(self, unit: str) -> str:
        """`active`, `activating`, `inactive`, `failed` …"""
        return self.run("systemctl", "is-active", unit, check=False).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """The unit's last lines."""
        words = ("journalctl", "--no-pager", "-q", "-n", "60", "-o", "cat", "-u", unit)
        return self.run(*words, check=False).stdout

    def until_state(self, unit: str, wanted: str, seconds: float) -> None:
        """Wait for a state; one that cannot lead there any more ends the wait."""
        end = time.monotonic() + seconds
        while (now := self.state(unit)) != wanted:
            late = time.monotonic() > end
            if late or (now == "failed" and wanted == "active"):
                raise AssertionError(f"{unit} is {now}, not {wanted}: {self.journal(unit)}")
            time.sleep(0.2)


def why_not_booted() -> str:
    """What keeps a container from booting here; "" when nothing does."""
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is not installed (apt install systemd-container)"
    return "" if os.geteuid() == 0 else "needs root"


def require_booted() -> Path:
    """For a fixture: the root, or a skip that says why."""
    reason = why_not_booted()
    if reason:
        pytest.skip(reason)
    return require_tools()


@contextlib.contextmanager
def booted(root: Path, place: Path, binds: Mapping[str, Path] | None = None) -> Iterator[Booted]:
    """Boot over a root.

    Args:
        root: a Debian tree with systemd; not written.
        place: an empty directory for what is.
        binds: place inside → file or directory outside, writable.
    """
    options = [f"--bind={outside}:{inside}" for inside, outside in (binds or {}).items()]
    words = nspawn(str(place / "root"), *options)
    words += ["systemd.unit=multi-user.target", "systemd.firstboot=off"]
    _mask(place)
    command = in_new_namespace(OPEN, "booted", str(root), str(place), *words)
    with started(command, place / "console") as running:
        machine = Booted(running)
        _until_up(machine)
        yield machine


def _mask(place: Path) -> None:
    units = place / "upper" / "etc" / "systemd" / "system"
    units.mkdir(parents=True, exist_ok=True)
    for directory in (place / "upper", *units.relative_to(place / "upper").parents):
        (place / "upper" / directory).chmod(0o755)
    for name in MASKED:
        (units / name).symlink_to("/dev/null")


def _until_up(machine: Booted) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while True:
        done = machine.run("systemctl", "is-system-running", check=False)
        if done.stdout.strip() in ("running", "degraded"):
            return
        if time.monotonic() > end:
            raise AssertionError(f"not up: {done.stdout}{done.stderr}")
        time.sleep(0.2)
