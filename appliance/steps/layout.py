"""Where set-up puts things, the keys they are cached under, stamps and the lock.

Nothing under a key is ever changed: it is made in a temporary directory beside it and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APPLIANCE = ROOT / "appliance"


@dataclass(frozen=True, slots=True)
class Layout:
    """Directories of one checkout and of the cache it shares with others."""

    venv: Path
    cache: Path
    portable: bool = False
    """llama.cpp for every processor of this kind (x86-64-v3), not for the one that builds it."""

    @property
    def python(self) -> Path:
        """Interpreter of the virtual environment."""
        return self.venv / "bin" / "python"

    @property
    def command(self) -> Path:
        """The fabstir-node command."""
        return self.venv / "bin" / "fabstir-node"

    @property
    def wheels(self) -> Path:
        """Wheels built here, one directory a key."""
        return self.cache / "wheels"


def layout(*, portable: bool = False) -> Layout:
    """FABSTIR_CACHE, else the XDG cache directory; FABSTIR_VENV, else .venv of the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(os.environ.get("FABSTIR_CACHE") or Path(base) / "fabstir-node").absolute()
    venv = Path(os.environ.get("FABSTIR_VENV") or ROOT / ".venv").absolute()
    return Layout(venv, cache, portable)


def digest(*parts: str | bytes | Path) -> str:
    """Twenty hex digits over texts and the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        piece = part.read_bytes() if isinstance(part, Path) else part
        piece = piece.encode() if isinstance(piece, str) else piece
        total.update(len(piece).to_bytes(8, "big") + piece)
    return total.hexdigest()[:20]


def cpu_flags() -> str:
    """The instruction sets the kernel reports: a library built for this processor needs them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return " ".join(sorted(value.split()))
    return platform.machine()


def python_tag() -> str:
    """`cpython-3.11-x86_64`: what a binary wheel depends on."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{sys.implementation.name}-{version}-{platform.machine()}"


def read_stamp(path: Path) -> str:
    """The key a directory was made for; "" when it was never finished."""
    try:
        return path.read_text("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write beside the place and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


@contextmanager
def made_atomically(target: Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Hold the lock of the cache; a second set-up says so and waits for the first."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "setup.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            sys.stderr.write(f"  … another set-up is running (process {owner}); waiting for it\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def split_lock(text: str, names: Sequence[str]) -> tuple[str, str]:
    """Divide a hash-pinned requirements file.

    Returns:
        The requirements not named in `names`, and those that are.
    """
    rest: list[str] = []
    named: list[str] = []
    target = rest
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            target = named if line.partition("==")[0].strip() in names else rest
        target.append(line)
    return "\n".join(rest) + "\n", "\n".join(named) + "\n"
