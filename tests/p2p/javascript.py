"""A JavaScript renter as a process: js-libp2p from the lock file, one JSON line each way.

Packages come from the registry once, by integrity hash and without their install scripts, into a
cache directory named after the lock file; the sources run from a directory beside a link to it.
"""

import contextlib
import hashlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from nodeapp.service.paths import default_cache_dir

SOURCES = Path(__file__).parent / "js"
PROTO = Path(__file__).parents[2] / "nodeapp" / "wire" / "fabstir.proto"
LEAST_NODE = 20
INSTALL_SECONDS = 180
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "ETIMEDOUT")


def workspace(directory: Path) -> Path:
    """The sources with their packages; skips where they cannot be had."""
    require_node()
    packages = installed_packages()
    for source in (*SOURCES.glob("*.js"), SOURCES / "package.json"):
        shutil.copy(source, directory)
    (directory / "node_modules").symlink_to(packages / "node_modules")
    return directory


def require_node() -> None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    version = subprocess.run(
        ["node", "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    if int(version.lstrip("v").split(".")[0]) < LEAST_NODE:
        pytest.skip(f"node {version.strip()} is older than {LEAST_NODE}")


def installed_packages(sources: Path = SOURCES, name: str = "js-interop") -> Path:
    lock = (sources / "package-lock.json").read_bytes()
    target = default_cache_dir() / f"{name}-{hashlib.sha256(lock).hexdigest()[:12]}"
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=target.parent) as partial:
        for file in ("package.json", "package-lock.json"):
            shutil.copy(sources / file, partial)
        install = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=partial,
            capture_output=True,
            check=False,
            text=True,
            timeout=INSTALL_SECONDS,
        )
        if install.returncode != 0 and any(code in install.stderr for code in OFFLINE):
            pytest.skip("no package is cached and the package registry cannot be reached")
        assert install.returncode == 0, install.stderr[-2000:]
        # Another test run may have been quicker: its directory is as good.
        with contextlib.suppress(OSError):
            Path(partial).rename(target)
            Path(partial).mkdir()
    return target


class JavaScript:
    """`renter.js`: send a command, get its facts."""

    def __init__(self, directory: Path) -> None:
        self._errors = (directory / "renter.err").open("w+")
        self.process = subprocess.Popen(
            ["node", "renter.js"],
            cwd=directory,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def ask(self, command: str, *, seconds: float, **values):
        """The facts a command brings.

        Raises:
            AssertionError: an error, no answer in time, or the process ended.
        """
        self.process.stdin.write(json.dumps({"command": command, **values}) + "\n")
        self.process.stdin.flush()
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no answer to {command} in {seconds:g} s") from None
        assert line, f"node ended at {command}: {self._last_words()}"
        facts = json.loads(line)
        assert "error" not in facts, f"{command}: {facts}"
        return facts

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.stdin.write('{"command": "stop"}\n')
        self.process.stdin.close()
        return self.process.wait(20)

    def end(self) -> None:
        """Whatever happened, leave nothing."""
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        self.process.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "FABSTIR_PROTO": str(PROTO)}
