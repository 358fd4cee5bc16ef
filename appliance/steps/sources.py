"""Which files of the checkout make the product, for images and installed nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.steps.layout import ROOT

LEFT_OUT = ("tests", "image", "nixos-modules", ".ci")
"""Not needed to run a node."""
_MADE_HERE = (".git", ".venv", "__pycache__", "node_modules")
_MADE_AT_THE_TOP = ("build",)
"""appliance/repart/build is written by hand."""


def product_files(root: Path = ROOT) -> list[Path]:
    """Relative to the checkout, sorted: what git knows; without git, everything not made here."""
    names = _tracked(root) if (root / ".git").exists() else list(_walked(root))
    return sorted(name for name in names if name.parts[0] not in LEFT_OUT)


def _tracked(root: Path) -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-z", "--cached"]
    if shutil.which("git") is None:
        return list(_walked(root))
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        return list(_walked(root))
    names = [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]
    return [name for name in names if (root / name).is_file()]


def _walked(root: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        made = _MADE_HERE + (_MADE_AT_THE_TOP if Path(directory) == root else ())
        below[:] = [name for name in below if name not in made and not name.endswith("_cache")]
        for name in files:
            yield (Path(directory) / name).relative_to(root)


def copy_files(names: Sequence[Path], target: Path, root: Path = ROOT) -> int:
    """Copy what differs, readable for all and writable for the owner only; returns how many."""
    changed = 0
    for name in names:
        source, place = root / name, target / name
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        content = source.read_bytes()
        if place.is_file() and place.read_bytes() == content:
            continue
        make_directories(place.parent, target)
        part = place.with_name(f".{place.name}.new")
        part.write_bytes(content)
        part.chmod(mode)
        part.replace(place)
        changed += 1
    return changed


def make_directories(directory: Path, top: Path) -> None:
    """With mode 0755 whatever the umask, down from `top`."""
    if directory.is_dir():
        return
    if directory != top:
        make_directories(directory.parent, top)
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
