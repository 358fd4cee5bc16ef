"""Files and links that are either the old one or the new one, whatever happens in between.

Order of every change: write beside it, bring to the disk, rename, bring the directory to the disk.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nodeapp.core.errors import Unavailable


def write_whole(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file; its directory is made when it is missing.

    Raises:
        Unavailable: the disk is full or read-only.
    """
    # Replicas of one process may write one file at the same time.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error


def swap_link(path: Path, target: str) -> None:
    """Point a symbolic link elsewhere; it never is missing in between.

    Raises:
        Unavailable: the disk is full or read-only.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise Unavailable(f"{path} cannot be changed: {error.strerror}") from error


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Bring everything on the path's file system to the disk (syncfs(2)).

    Raises:
        Unavailable: the disk is full or failing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.syncfs(descriptor) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise Unavailable(f"{path} cannot be brought to the disk: {reason}")
    finally:
        os.close(descriptor)
