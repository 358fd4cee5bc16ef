"""SQLite's errors told as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeapp.core.errors import Corrupt, Unavailable


@contextmanager
def told_as_ours(path: Path) -> Iterator[None]:
    """Translate.

    Raises:
        Unavailable: the disk is full or another connection holds the file.
        Corrupt: everything else: the file cannot be trusted, or the program is wrong.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text or "locked" in text:
            raise Unavailable(f"{path}: {text}") from error
        raise Corrupt(f"{path}: {text}") from error
    except sqlite3.Error as error:
        raise Corrupt(f"{path}: {error}") from error
