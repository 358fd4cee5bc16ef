"""A Debian 13 with a real systemd as its first process, in a container, without a virtual machine.

    with booted(tool_root(), tmp_path, {"/source": ROOT}) as machine:
        machine.run("systemctl", "is-active", "fabstir-node")

systemd-nspawn in a mount namespace of its own that shows only control groups of version 2, over an overlay of the
root: nothing is written to the root, and nothing is left when the process that opened it ends. The network is the
host's, so a chain or a renter outside reaches it on loopback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.image.toolroot import require_tools, told

BOOT_SECONDS = 60.0
STOP_SECONDS = 30.0
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
OPEN = """set -eu
root=$1 place=$2 group=$3
shift 3
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$group"
echo $$ > "/sys/fs/cgroup/$group/cgroup.procs"
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir -p "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work" room "$place/root"
: > "$place/root/etc/machine-id"
cat /etc/resolv.conf > "$place/root/etc/resolv.conf"
exec systemd-nspawn --quiet -D "$place/root" -b --register=no --keep-unit --console=pipe --link-journal=no \\
  --resolv-conf=off "$@" systemd.unit=multi-user.target systemd.firstboot=off
"""
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer", "console-getty.service")


@dataclass(frozen=True, slots=True)
class Booted:
    """The running container; `pid` is its first process as seen from outside."""

    pid: int
    root: Path
    group: str

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout_seconds: float = 50,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end, inside; a failure shows what it said."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-r", "-w"]
        environment = {**ENVIRONMENT, **(environment or {})}
        return told([*enter, *map(str, command)], environment, timeout_seconds, check=check)

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
    group = f"fabstir-test-{os.getpid()}-{secrets.token_hex(4)}"
    options = [f"--bind={outside}:{inside}" for inside, outside in (binds or {}).items()]
    _mask(place)
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", OPEN, "booted"]
    with (place / "console").open("wb") as console:
        nspawn = subprocess.Popen(
            [*command, str(root), str(place), group, *options],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    try:
        pid = _first_process(nspawn, place)
        # The overlay is seen from inside only.
        machine = Booted(pid, Path(f"/proc/{pid}/root"), group)
        _until_up(machine)
        yield machine
    finally:
        _end(nspawn)
        _forget(group)


def _forget(group: str) -> None:
    """Take the empty control groups away, wherever this machine shows those of version 2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _source, place, kind, *_rest = line.split()
        top = Path(place) / group
        if kind == "cgroup2" and top.is_dir():
            for path in sorted((top, *top.rglob("*")), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()


def _mask(place: Path) -> None:
    units = place / "upper" / "etc" / "systemd" / "system"
    units.mkdir(parents=True, exist_ok=True)
    for directory in (place / "upper", *units.relative_to(place / "upper").parents):
        (place / "upper" / directory).chmod(0o755)
    for name in MASKED:
        (units / name).symlink_to("/dev/null")


def _first_process(nspawn: subprocess.Popen[bytes], place: Path) -> int:
    """The child of nspawn that is process 1 of a namespace of its own."""
    end = time.monotonic() + BOOT_SECONDS
    while nspawn.poll() is None and time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, StopIteration):
            for child in psutil.Process(nspawn.pid).children(recursive=True):
                status = Path(f"/proc/{child.pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                # nspawn's stub is process 1 until systemd takes over.
                if line.split()[-1] == "1" and child.name() == "systemd":
                    return child.pid
        time.sleep(0.1)
    said = (place / "console").read_text(errors="replace")[-2000:]
    raise AssertionError(f"nothing booted (exit code {nspawn.poll()}): {said}")


def _until_up(machine: Booted) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while True:
        done = machine.run("systemctl", "is-system-running", check=False)
        if done.stdout.strip() in ("running", "degraded"):
            return
        if time.monotonic() > end:
            raise AssertionError(f"not up: {done.stdout}{done.stderr}")
        time.sleep(0.2)


def _end(nspawn: subprocess.Popen[bytes]) -> None:
    """An orderly power-off, then the end of everything inside."""
    if nspawn.poll() is None:
        nspawn.terminate()
    try:
        nspawn.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        nspawn.kill()
        nspawn.wait(10)
