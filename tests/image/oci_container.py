"""An OCI layout run by crun, without an engine: unpacked by umoci, host network, read-only root, no privileges.

In a mount namespace that shows only control groups of version 2; whatever runs ends with `stop` or with the process
that opened it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

OPEN = """set -eu
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$@"
"""
PROGRAMS = ("umoci", "crun")
STOP_SECONDS = 40.0


def require_crun() -> None:
    """Skip where containers cannot be run."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt install {program})")
    if os.geteuid() != 0:
        pytest.skip("needs root")


def unpack(layout: Path, tag: str, bundle: Path) -> dict[str, object]:
    """Make a bundle; returns its config."""
    command = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    config: dict[str, object] = json.loads((bundle / "config.json").read_text())
    return config


def confine(config: dict, binds: Mapping[str, tuple[Path, str]]) -> dict:
    """As `docker run --read-only --cap-drop ALL --security-opt no-new-privileges --network host` does.

    Args:
        config: of the bundle.
        binds: place inside → (place outside, `ro` or `rw`).
    """
    config["root"]["readonly"] = True
    process = config["process"]
    process["terminal"] = False
    process["noNewPrivileges"] = True
    # umoci's own default is 1024; engines give more, and compose files say it (docs/install.md).
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": files, "hard": files}]
    process["capabilities"] = {
        kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    user = process["user"]
    linux = config["linux"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "network"]
    linux.pop("resources", None)
    places = {*binds, "/run/fabstir", "/tmp", "/sys/fs/cgroup"}
    mounts = [one for one in config["mounts"] if one["destination"] not in places]
    owner = [f"uid={user['uid']}", f"gid={user['gid']}"]
    for place in ("/run/fabstir", "/tmp"):
        options = ["nosuid", "nodev", "mode=0700", *owner]
        mounts.append(
            {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options}
        )
    for place, (outside, kind) in binds.items():
        mounts.append(
            {
                "destination": place,
                "type": "bind",
                "source": str(outside),
                "options": ["rbind", kind],
            }
        )
    config["mounts"] = mounts
    return config


@dataclass(frozen=True, slots=True)
class Container:
    """One that runs; `user` is the image's, as uid:gid."""

    name: str
    user: str
    state: Path
    child: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def until_said(self, text: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while text not in self.said():
            assert self.child.poll() is None, f"it ended with {self.child.poll()}: {self.said()}"
            assert time.monotonic() < end, f"not said in {seconds:g} s: {text}: {self.said()}"
            time.sleep(0.1)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A further program inside, as an engine's health check does."""
        words = [*self._crun(), "exec", "--user", self.user, self.name, *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def stop(self) -> int:
        """The stop signal; the exit code."""
        subprocess.run([*self._crun(), "kill", self.name, "TERM"], check=True, timeout=20)
        return self.child.wait(STOP_SECONDS)

    def pids(self) -> list[int]:
        """All processes inside, as seen from outside."""
        return [one.pid for one in psutil.Process(self.child.pid).children(recursive=True)]

    def listed(self) -> list[dict[str, object]]:
        """What crun still knows."""
        words = [*self._crun(), "list", "-f", "json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
        found: list[dict[str, object]] = json.loads(done.stdout or "[]") or []
        return found

    def _crun(self) -> list[str]:
        enter = ["nsenter", f"--mount=/proc/{self.child.pid}/ns/mnt"]
        base = ["crun", "--root", str(self.state), "--cgroup-manager=disabled"]
        return [*(enter if self.child.poll() is None else ()), *base]


@contextlib.contextmanager
def container(bundle: Path, config: dict, place: Path, name: str) -> Iterator[Container]:
    """Run a bundle; `place` takes crun's state and the output."""
    (bundle / "config.json").write_text(json.dumps(config))
    state, output = place / "crun", place / "output"
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", OPEN, "container"]
    command += ["crun", "--root", str(state), "--cgroup-manager=disabled"]
    command += ["run", "--bundle", str(bundle), name]
    with output.open("wb") as sink:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    user = config["process"]["user"]
    running = Container(name, f"{user['uid']}:{user['gid']}", state, child, output)
    try:
        yield running
    finally:
        if child.poll() is None:
            subprocess.run([*running._crun(), "kill", name, "KILL"], check=False, timeout=20)
            child.wait(20)
        subprocess.run([*running._crun(), "delete", "--force", name], check=False, timeout=20, capture_output=True)  # fmt: skip
