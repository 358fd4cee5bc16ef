"""Files and links that are either the old one or the new one, whatever happens in between.

Order of every change: write beside it, bring to the disk, rename, bring the directory to the disk.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nodeapp.core.errors import Unavailable


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file.

    Raises:
        Unavailable: the disk is full or read-only.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
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
