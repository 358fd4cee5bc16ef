"""One process a file: a lock beside it that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from nodeapp.core.errors import Unavailable


class FileLock:
    """An advisory lock (flock(2)) on `<path>`, which holds the owner's process id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def acquire(self, what: str) -> None:
        """Take it at once or not at all.

        Raises:
            Unavailable: another process holds it; the message names its process id.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(32).strip() or "unknown"
            file.close()
            raise Unavailable(
                f"{what} is in use by process {owner}; stop that one first"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def fileno(self) -> int:
        """The held descriptor: a child that inherits it holds the lock as well.

        Raises:
            Unavailable: the lock is not held.
        """
        if self._file is None:
            raise Unavailable(f"lock {self._path} is not held")
        return self._file.fileno()

    def release(self) -> None:
        """Let go; the file stays, so that no two processes can lock different inodes."""
        if self._file is not None:
            self._file.close()
            self._file = None
