"""Root touching another user's files as that user.

Below a directory that a user may write, root then follows no link that it may have put there, and
what is made belongs to whoever has to read it. For commands with one thread: it holds for the
whole process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """For the block; needs CAP_SETUID and CAP_SETGID."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


@contextlib.contextmanager
def acting_as_owner(directory: Path) -> Iterator[None]:
    """As whoever owns the directory when this is root, else as before."""
    state = directory.stat()
    if os.geteuid() != 0 or state.st_uid == 0:
        yield
        return
    with acting_as(state.st_uid, state.st_gid):
        yield
