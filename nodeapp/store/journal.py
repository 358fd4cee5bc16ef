"""The append-only journal: what is in it has happened, what is not has not.

Rules of this file: a record is on disk when append() returns (WAL, synchronous=FULL, one
transaction a call); records are never changed, and only removed by the checkpoint that stores the
state they led to, in one transaction; one process owns the file (flock beside it and SQLite's
EXCLUSIVE mode), one thread in it owns the connection.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.store.backups import HISTORY_KEY, BackupFile, copy_to, new_history
from nodeapp.store.errors import told_as_ours
from nodeapp.store.lock import FileLock
from nodeapp.store.marker import Marker, check
from nodeapp.store.migrations import migrate

MAX_PAYLOAD_BYTES = 1 << 20
REPLAY_BATCH = 1000
OWNER_KEY = "owner"
CHECKPOINT_KEY = "checkpoint"
"""Meta: the record that the stored state stands for, decimal."""
CACHE_KIB = 2048

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Change:
    """What is appended: a kind and its bytes, at most MAX_PAYLOAD_BYTES."""

    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A change with its place; sequences start at 1 and have no gaps."""

    sequence: int
    kind: str
    payload: bytes


class Journal:
    """Open with `await Journal.open(...)`; every method may be called from one event loop."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path = path
        self._lock = lock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None
        self._last = 0

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        owner: str,
        must_exist: bool,
        marker: Path | None = None,
        note: bool = True,
    ) -> Journal:
        """Open or create the journal of one account.

        Args:
            path: the database file; its lock is `<path>.lock`.
            owner: whose journal it is (a chain account); fixed at creation.
            must_exist: refuse to start when the file is missing.
            marker: file saying which one is the owner's journal; best kept beside the key, so that
                it outlives the journal's directory. Default `<path>.owner`.
            note: False: leave the marker as it is, for who only reads.

        Raises:
            Unavailable: another process holds it.
            Corrupt: it is missing although it existed before (the marker is there, or
                `must_exist`), the marker names another one that is there as well, it belongs to
                another owner, or fails SQLite's check.
        """
        lock = FileLock(path.with_name(path.name + ".lock"))
        lock.acquire(f"journal {path}")
        journal = cls(path, lock)
        known = Marker(marker or path.with_name(path.name + ".owner"))
        try:
            await journal._run(lambda: check(known, path, owner, must_exist=must_exist))
            await journal._run(lambda: journal._begin(owner))
            if note:
                await journal._run(lambda: known.note(path, owner))
        except BaseException:
            await journal.close()
            raise
        return journal

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @property
    def last_sequence(self) -> int:
        """Place of the newest durable record; 0 when empty."""
        return self._last

    async def append(self, changes: Sequence[Change]) -> int:
        """Write all or none; on disk when this returns.

        A cancelled caller does not undo the write: treat it as done and replay.

        Returns:
            The sequence of the last one written.

        Raises:
            Unavailable: the disk is full; nothing was written.
            Corrupt: a payload is over MAX_PAYLOAD_BYTES, or the database failed.
        """
        for change in changes:
            if len(change.payload) > MAX_PAYLOAD_BYTES:
                raise Corrupt(
                    f"change {change.kind} has {len(change.payload)} bytes, "
                    f"at most {MAX_PAYLOAD_BYTES}"
                )
        return await self._run(lambda: self._append(tuple(changes)))

    async def replay(self, after: int = 0, limit: int = REPLAY_BATCH) -> list[Record]:
        """The next records after a sequence, in order; call until the list is empty."""
        return await self._run(lambda: self._replay(after, limit))

    async def checkpoint(
        self,
        sequence: int,
        puts: Mapping[str, bytes],
        removed: Sequence[str],
        archive: Sequence[tuple[int, bytes]],
    ) -> None:
        """Store what the state after `sequence` differs by, and remove the records up to it.

        Args:
            sequence: a record of the journal, not below the last checkpoint's.
            puts: rows of the state that are new or changed.
            removed: keys of rows that are gone.
            archive: what is only looked up from now on: (subject, bytes), appended.

        Raises:
            Unavailable: the disk is full; nothing was changed.
        """
        await self._run(lambda: self._checkpoint(sequence, puts, removed, archive))

    async def stored_state(self) -> tuple[int, dict[str, bytes]]:
        """The record the stored state stands for, and its rows; (0, {}): replay from the first."""
        return await self._run(self._stored_state)

    async def archived(self, subject: int) -> list[bytes]:
        """What was archived under a subject, oldest first."""
        return await self._run(lambda: self._archived(subject))

    async def archive_after(self, place: int, limit: int) -> list[tuple[int, bytes]]:
        """The archive in order, page by page: (place, bytes); begin with place 0."""
        return await self._run(lambda: self._archive_after(place, limit))

    async def get_meta(self, key: str) -> bytes | None:
        """A small named value."""
        return await self._run(lambda: self._get_meta(key))

    async def put_meta(self, key: str, value: bytes) -> None:
        """Write a small named value, durable when this returns."""
        await self._run(lambda: self._put_meta(key, value))

    async def backup(self, directory: Path) -> BackupFile:
        """Copy the whole journal into a new file of the directory, checked and durable.

        Raises:
            Unavailable: the disk is full.
            Corrupt: the copy does not pass its check.
        """
        return await self._run(lambda: copy_to(self._open_connection(), directory))

    async def close(self) -> None:
        """Finish the write under way, close the file, drop the lock."""
        if self._connection is not None:
            await self._run(self._end)
        self._thread.shutdown(wait=True)
        self._lock.release()

    async def _run(self, work: Callable[[], Result]) -> Result:
        def guarded() -> Result:
            with told_as_ours(self._path):
                return work()

        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._thread, guarded)
        except RuntimeError as error:
            raise Unavailable(f"journal {self._path} is closed") from error
        # A transaction that has begun is finished: cancelling the caller must not tear it.
        return await asyncio.shield(future)

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Unavailable(f"journal {self._path} is closed")
        return self._connection

    def _begin(self, owner: str) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._connection = connection
        self._path.chmod(0o600)
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"cache_size = -{CACHE_KIB}",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Corrupt(f"journal {self._path}: {verdict}")
        migrate(connection, self._path)
        self._claim(owner)
        newest = connection.execute("SELECT coalesce(max(sequence), 0) FROM records").fetchone()[0]
        self._last = max(int(newest), self._checkpoint_sequence())

    def _claim(self, owner: str) -> None:
        known = self._get_meta(OWNER_KEY)
        if known is None:
            self._put_meta(OWNER_KEY, owner.encode())
        elif known != owner.encode():
            raise Corrupt(
                f"journal {self._path} belongs to {known.decode(errors='replace')}, not to {owner}"
            )
        if self._get_meta(HISTORY_KEY) is None:
            self._put_meta(HISTORY_KEY, new_history())

    def _append(self, changes: tuple[Change, ...]) -> int:
        if not changes:
            return self._last
        rows = [
            (sequence, change.kind, change.payload)
            for sequence, change in enumerate(changes, start=self._last + 1)
        ]
        with _Transaction(self._open_connection()) as connection:
            connection.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
        self._last += len(rows)
        return self._last

    def _replay(self, after: int, limit: int) -> list[Record]:
        rows = self._open_connection().execute(
            "SELECT sequence, kind, payload FROM records WHERE sequence > ? "
            "ORDER BY sequence LIMIT ?",
            (after, limit),
        )
        records = [Record(*row) for row in rows]
        for expected, record in enumerate(records, start=after + 1):
            if record.sequence != expected:
                raise Corrupt(f"journal {self._path} has a gap: record {expected} is missing")
        return records

    def _checkpoint(
        self,
        sequence: int,
        puts: Mapping[str, bytes],
        removed: Sequence[str],
        archive: Sequence[tuple[int, bytes]],
    ) -> None:
        if not self._checkpoint_sequence() <= sequence <= self._last:
            raise Corrupt(f"checkpoint of record {sequence}, the journal ends at {self._last}")
        with _Transaction(self._open_connection()) as connection:
            connection.executemany("INSERT OR REPLACE INTO states VALUES (?, ?)", puts.items())
            connection.executemany("DELETE FROM states WHERE key = ?", [(key,) for key in removed])
            connection.executemany("INSERT INTO archive (subject, payload) VALUES (?, ?)", archive)
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (CHECKPOINT_KEY, b"%d" % sequence)
            )
            connection.execute("DELETE FROM records WHERE sequence <= ?", (sequence,))

    def _checkpoint_sequence(self) -> int:
        return int(self._get_meta(CHECKPOINT_KEY) or 0)

    def _stored_state(self) -> tuple[int, dict[str, bytes]]:
        rows = self._open_connection().execute("SELECT key, payload FROM states")
        return self._checkpoint_sequence(), dict(rows.fetchall())

    def _archived(self, subject: int) -> list[bytes]:
        rows = self._open_connection().execute(
            "SELECT payload FROM archive WHERE subject = ? ORDER BY place", (subject,)
        )
        return [row[0] for row in rows]

    def _archive_after(self, place: int, limit: int) -> list[tuple[int, bytes]]:
        rows = self._open_connection().execute(
            "SELECT place, payload FROM archive WHERE place > ? ORDER BY place LIMIT ?",
            (place, limit),
        )
        return rows.fetchall()

    def _get_meta(self, key: str) -> bytes | None:
        row = (
            self._open_connection()
            .execute("SELECT value FROM meta WHERE key = ?", (key,))
            .fetchone()
        )
        return bytes(row[0]) if row else None

    def _put_meta(self, key: str, value: bytes) -> None:
        self._open_connection().execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the block raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            # A COMMIT that failed (disk full) leaves the transaction open.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
