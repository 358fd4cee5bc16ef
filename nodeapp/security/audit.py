"""One process's audit log on the disk: <state>/audit/<process>/audit.jsonl and the files before it.

Each process has a directory of its own, so that a confined one can be given that and no other's.
Rules of this file: records are only ever appended; a file that is full is renamed after its first
record and the chain goes on in a new one; what ends in the middle of a record is put aside, never
thrown away. Writers are kept apart by a lock, so that two commands may share a log. Not for the
event loop: every append may wait for the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.audit import (
    AuditEvent,
    Head,
    RecordsPruned,
    TailMissing,
    TailTorn,
    decode_record,
    encode_record,
    genesis,
    head_of,
)
from nodeapp.core.audit_chain import Chain, read_chain
from nodeapp.core.errors import Corrupt, Unavailable

DIRECTORY = "audit"
ACTIVE = "audit.jsonl"
LOCK = "lock"
MAX_TORN = 8
"""Torn ends that are kept; the oldest go."""
TAIL_BYTES = 64 << 10
_PROCESS = re.compile(r"[a-z][a-z0-9-]{0,40}")
_FULL = re.compile(r"[0-9]{12}\.jsonl")
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Stamped:
    """An event with the time it was told, as it goes into the record."""

    at: str
    event: AuditEvent


@dataclass(slots=True)
class _Known:
    """The active file as this writer left it."""

    inode: int
    size: int
    head: Head


class AuditFile:
    """Appends to one process's log."""

    def __init__(self, root: Path, process: str, *, file_bytes: int, files: int) -> None:
        """Nothing is touched yet.

        Args:
            root: <state>/audit.
            process: whose log.
            file_bytes: a file that would grow over it is followed by a new one.
            files: full ones that are kept.
        """
        self._directory = root / process
        self._process = process
        self._file_bytes = file_bytes
        self._files = files
        self._known: _Known | None = None

    def append(self, entries: Sequence[Stamped]) -> Head:
        """Write them all; on the disk when one of them is durable.

        Raises:
            Unavailable: the disk is full, read-only or failing; nothing of them was kept.
        """
        try:
            with self._alone(), self._opened() as descriptor:
                return self._append(descriptor, entries)
        except OSError as error:
            raise Unavailable(
                f"audit log {self._directory} cannot be written: {error.strerror}"
            ) from error

    def _append(self, descriptor: int, entries: Sequence[Stamped]) -> Head:
        now = entries[0].at
        known, found = self._look(descriptor, now)
        todo = [*found, *entries]
        if known.size and known.size + sum(map(_estimate, todo)) > self._file_bytes:
            # The new file is in the way of nobody: the lock is ours, readers take it as well.
            os.fsync(descriptor)
            self._rotate(descriptor)
            with self._opened() as new:
                pruned = self._overdue()
                known = _Known(os.fstat(new).st_ino, 0, known.head)
                done = [Stamped(now, RecordsPruned(pruned[1]))] if pruned else []
                head = self._write(new, known, [*done, *todo], is_new=True)
                for path in pruned[0] if pruned else ():
                    path.unlink(missing_ok=True)
                return head
        return self._write(descriptor, known, todo, is_new=not known.size)

    def _write(
        self, descriptor: int, known: _Known, entries: Sequence[Stamped], *, is_new: bool
    ) -> Head:
        head, lines = known.head, []
        for entry in entries:
            line, head = encode_record(head, entry.at, entry.event)
            lines.append(line)
        content = b"".join(lines)
        try:
            _write_all(descriptor, content)
            if any(entry.event.is_durable for entry in entries):
                os.fdatasync(descriptor)
            if is_new:
                _sync(self._directory)
        except OSError:
            # Half a record would be in the way of the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, known.size)
            self._known = _Known(known.inode, known.size, known.head)
            raise
        self._known = _Known(known.inode, known.size + len(content), head)
        return head

    def _look(self, descriptor: int, now: str) -> tuple[_Known, list[Stamped]]:
        """Where the chain goes on, and what is to be told of how it was found."""
        state, before = os.fstat(descriptor), self._known
        if before and (before.inode, before.size) == (state.st_ino, state.st_size):
            return before, []
        content = _read_whole(descriptor, state.st_size)
        end, head = _last_record(content)
        notes: list[AuditEvent] = []
        if end < len(content):
            notes.append(self._put_aside(descriptor, content[end:], end, now))
        head = head or self._head_before()
        if before is not None and head.seq < before.head.seq:
            notes.append(TailMissing(before.head, head))
        return _Known(state.st_ino, end, head), [Stamped(now, note) for note in notes]

    def _put_aside(self, descriptor: int, torn: bytes, end: int, now: str) -> TailTorn:
        name = f"{re.sub('[^0-9T]', '', now)}.torn"
        target = os.open(
            self._directory / name,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        with os.fdopen(target, "wb") as file:
            file.write(torn)
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(descriptor, end)
        for old in sorted(self._directory.glob("*.torn"))[:-MAX_TORN]:
            old.unlink(missing_ok=True)
        return TailTorn(len(torn), name)

    def _head_before(self) -> Head:
        """Of the full files: the active one is new, or nothing is left of it."""
        for path in reversed(full_files(self._directory)):
            _end, head = _last_record(path.read_bytes())
            if head is not None:
                return head
        return genesis(self._process)

    def _rotate(self, descriptor: int) -> None:
        first = os.pread(descriptor, TAIL_BYTES, 0).split(b"\n", 1)[0]
        try:
            number = decode_record(first).seq
        except Corrupt:
            # Somebody wrote into it: kept under the number that is free, for whoever looks.
            number = 1 + max((int(path.stem) for path in full_files(self._directory)), default=0)
        (self._directory / ACTIVE).rename(self._directory / f"{number:012d}.jsonl")

    def _overdue(self) -> tuple[list[Path], Head] | None:
        gone = full_files(self._directory)[: -self._files]
        if not gone:
            return None
        _end, head = _last_record(gone[-1].read_bytes())
        return (gone, head) if head is not None else None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._directory / LOCK, _FLAGS, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self._directory / ACTIVE, _FLAGS, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def processes(root: Path) -> list[str]:
    """Who has a log below <state>/audit."""
    try:
        return sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and is_process(entry.name)
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"audit log {root} cannot be read: {error.strerror}") from error


def is_process(name: str) -> bool:
    """Whether a directory of that name can hold a log."""
    return _PROCESS.fullmatch(name) is not None


def full_files(directory: Path) -> list[Path]:
    """Files that are not written any more, oldest first."""
    return sorted(path for path in directory.iterdir() if _FULL.fullmatch(path.name))


def read_files(root: Path, process: str) -> list[tuple[str, bytes]]:
    """(name, content) of every file of a log, oldest first, as of one moment.

    Raises:
        Unavailable: it cannot be read.
    """
    directory = root / process
    try:
        with _shared(directory):
            paths = [*full_files(directory), directory / ACTIVE]
            return [(path.name, path.read_bytes()) for path in paths if path.exists()]
    except OSError as error:
        raise Unavailable(f"audit log {directory} cannot be read: {error.strerror}") from error


def read_chains(root: Path) -> dict[str, Chain]:
    """Every log below <state>/audit, followed from its beginning.

    Raises:
        Unavailable: a file cannot be read.
    """
    return {
        process: read_chain(process, [(f"{process}/{name}", text) for name, text in files])
        for process in processes(root)
        if (files := read_files(root, process))
    }


def heads(root: Path, *, but: str = "") -> dict[str, Head]:
    """The newest record of every log, brought to the disk first.

    A log that cannot be read, or whose end is no record, is left out: `verify` tells why.
    """
    found: dict[str, Head] = {}
    for process in processes(root):
        if process == but:
            continue
        with contextlib.suppress(OSError, Corrupt):
            head = _head(root / process)
            if head is not None:
                found[process] = head
    return found


def _head(directory: Path) -> Head | None:
    with _shared(directory):
        descriptor = os.open(directory / ACTIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
            lines = tail.split(b"\n")[:-1]
            if not lines:
                return None
            os.fsync(descriptor)
            return head_of(lines[-1])
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _shared(directory: Path) -> Iterator[None]:
    """No file is renamed meanwhile; who may not read the lock reads without it."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _last_record(content: bytes) -> tuple[int, Head | None]:
    """Where the last whole record ends, and its head; None: there is none."""
    end = content.rfind(b"\n") + 1
    while end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        try:
            return end, head_of(content[begin : end - 1])
        except Corrupt:
            end = begin
    return 0, None


def _estimate(entry: Stamped) -> int:
    return len(encode_record(Head(10**12, "0" * 64), entry.at, entry.event)[0])


def _read_whole(descriptor: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = os.pread(descriptor, size - len(content), len(content))
        if not part:
            break
        content += part
    return content


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
