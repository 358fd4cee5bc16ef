"""A systemd that boots without a virtual machine: what every systemd-nspawn of the tests has in common.

    command = in_new_namespace(script, "name", *nspawn(root, "--bind=…"))
    with started(command, log) as running:
        told(running.inside("systemctl", "is-system-running"), …)

The script makes the root ready in a mount namespace of its own and ends with `exec "$@"`. Used by
booted.py (a Debian) and image/test/container.py (the appliance). Rules of this file: only control
groups of version 2 are shown inside; nothing is left when the process that started it ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

BOOT_SECONDS = 60.0
STOP_SECONDS = 60.0
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
OPTIONS = (
    *("--quiet", "-b", "--register=no", "--keep-unit", "--console=pipe", "--link-journal=no"),
    "--resolv-conf=off",
)
IN_GROUP = """set -eu
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$FABSTIR_GROUP"
echo $$ > "/sys/fs/cgroup/$FABSTIR_GROUP/cgroup.procs"
"""
"""Begins a script: the shell, and what it becomes, gets a control group that `started` names."""


@dataclass(frozen=True, slots=True)
class Running:
    """A container whose systemd has begun; `pid` is that process as seen from outside."""

    process: subprocess.Popen[bytes]
    pid: int
    log: Path

    def inside(self, *command: str | Path) -> list[str]:
        """What to start from outside for a command inside."""
        return ["nsenter", "-t", str(self.pid), "-a", "-r", "-w", "--", *map(str, command)]

    def said(self) -> str:
        """What nspawn printed last."""
        return _end_of(self.log)


def nspawn(root: str, *options: str) -> list[str]:
    """The words that boot this root."""
    return ["systemd-nspawn", *OPTIONS, "-D", root, *options]


def in_new_namespace(script: str, *arguments: str) -> list[str]:
    """A shell script with a mount namespace of its own; the first argument is its name."""
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", script, *arguments]


@contextlib.contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[Running]:
    """Boot; it is off and its control group gone at the end of the block.

    Args:
        command: becomes systemd-nspawn, in a shell that began with IN_GROUP.
        log: what it prints is appended.

    Raises:
        AssertionError: nothing booted; with what was said.
    """
    group = f"fabstir-test-{os.getpid()}-{secrets.token_hex(4)}"
    with log.open("ab") as opened:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env={**os.environ, "FABSTIR_GROUP": group},
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Running(process, _first_process(process, log), log)
    finally:
        _end(process)
        _forget(group)


def _first_process(process: subprocess.Popen[bytes], log: Path) -> int:
    """The child that is process 1 of a namespace of its own."""
    end = time.monotonic() + BOOT_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, StopIteration):
            for child in psutil.Process(process.pid).children(recursive=True):
                status = Path(f"/proc/{child.pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                # nspawn's stub is process 1 until systemd takes over.
                if line.split()[-1] == "1" and child.name() == "systemd":
                    return child.pid
        time.sleep(0.1)
    raise AssertionError(f"nothing booted (exit code {process.poll()}): {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-2000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """An orderly power-off, then the end of everything inside."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


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
