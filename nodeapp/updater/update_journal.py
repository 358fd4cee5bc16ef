"""The state of the update as one small file, replaced as a whole before every effect."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nodeapp.core.audit import AuditSink, Unrecorded
from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.core.update import Change, Effect, UpdateState
from nodeapp.core.update_record import told
from nodeapp.core.update_transitions import apply
from nodeapp.store.atomic import write_whole

SCHEMA = 1
MAX_BYTES = 1 << 20
FILE_NAME = "update.json"


class _File(msgspec.Struct, frozen=True):
    schema: int
    sha256: str
    """Of `state` as it stands here."""
    state: msgspec.Raw


class UpdateJournal:
    """Changed by the updater, and by whoever judges a trial: the launcher, or the boot."""

    def __init__(self, path: Path, audit: AuditSink | None = None) -> None:
        self._path = path
        self._audit = audit or Unrecorded()

    def read(self) -> UpdateState:
        """What was written last; a fresh one when there is none.

        Raises:
            Corrupt: the file is damaged, or of a schema that this release does not know.
            Unavailable: it cannot be read: it is root's, or the disk is failing.
        """
        try:
            # Not waiting for what a pipe would bring: the boot's judge reads it as well.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(MAX_BYTES) or b""
        except FileNotFoundError:
            return UpdateState(current="")
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be read: {error.strerror}") from error
        try:
            held = msgspec.json.decode(content, type=_File)
            if held.schema != SCHEMA:
                raise Corrupt(f"{self._path} has schema {held.schema}, known is {SCHEMA}")
            if hashlib.sha256(bytes(held.state)).hexdigest() != held.sha256:
                raise Corrupt(f"{self._path} is damaged: its hash does not match")
            return msgspec.json.decode(held.state, type=UpdateState)
        except (ValueError, RecursionError) as error:  # msgspec's own, and of what it calls
            raise Corrupt(f"{self._path} is damaged: {error}") from error

    def write(self, state: UpdateState) -> None:
        """Bring it to the disk.

        Raises:
            Unavailable: the disk is full or read-only.
        """
        body = msgspec.json.encode(state)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = _File(SCHEMA, hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
        write_whole(self._path, msgspec.json.encode(held))

    def begin_again(self, version: str, why: str) -> UpdateState:
        """After damage: only what runs is known. No money is in here, so the node goes on.

        Raises:
            Unavailable: the disk is full or read-only.
        """
        reason = f"the update journal was damaged and begun again: {why}"
        state = UpdateState(current=version, newest=version, reason=reason)
        self.write(state)
        return state

    def advance(self, change: Change) -> tuple[UpdateState, tuple[Effect, ...]]:
        """Apply one change to what is written; returns what is to be done now.

        Raises:
            Rejected: it may not be done now.
            Unavailable, Corrupt: see read and write.
        """
        with self._alone():
            before = self.read()
            state, effects = apply(before, change)
            if state != before:
                self.write(state)
        for event in told(before, state):
            self._audit.record(event)
        return state, effects

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Reading and writing are one step: the boot's judge and the updater both do it."""
        directory = self._path.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The directory is the lock: a file of its own could be root's after a command of root.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise Unavailable(f"{directory} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
