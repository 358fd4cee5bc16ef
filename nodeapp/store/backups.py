"""Copies of a journal: made by SQLite's backup interface, checked before they count.

A backup is `journal-<last sequence>.sqlite` and beside it `….sha256` in sha256sum(1)'s form; the
second file is written last, so a copy that was cut short is never taken for a backup.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import Corrupt, NotFound, Rejected
from nodeapp.core.retention import Retention, in_order, kept
from nodeapp.store.atomic import write_whole
from nodeapp.store.digest import sha256_of
from nodeapp.store.errors import told_as_ours
from nodeapp.store.migrations import MIGRATIONS, is_readable, schema_version

RESTORED_KEY = "restored"
"""Meta: this file came out of a backup and what it lost is not looked into yet."""
HISTORY_KEY = "history"
"""Meta: drawn at random when a journal is begun; its copies and those put back keep it."""
_HEAD_QUERIES = (
    "SELECT sequence, kind, payload FROM records ORDER BY sequence",
    "SELECT key, payload FROM states ORDER BY key",
    "SELECT subject, payload FROM archive ORDER BY place",
)
_NAME = re.compile(r"^journal-(\d{12})\.sqlite$")


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A finished backup; `records` counts from 1 to the newest."""

    path: Path
    sha256: str
    size_bytes: int
    records: int


@dataclass(frozen=True, slots=True)
class JournalHead:
    """Where a journal stands; `sha256` covers every record, the stored state and the archive."""

    owner: str
    schema: int
    records: int
    sha256: str


def copy_to(source: sqlite3.Connection, directory: Path) -> BackupFile:
    """Copy what `source` holds now; the same content again gives the same file name.

    Raises:
        Corrupt: the copy does not pass its check.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = directory / f".backup.{os.getpid()}.part"
    part.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(part)) as target:
            source.backup(target)
            # A single plain file: readable without write access beside it.
            target.execute("PRAGMA journal_mode = DELETE")
        part.chmod(0o600)
        records = _check(part)
        final = directory / f"journal-{records:012d}.sqlite"
        digest = sha256_of(part)
        _sync(part)
        part.replace(final)
        _write_digest(final, digest)
        _sync(directory)
    finally:
        part.unlink(missing_ok=True)
    return BackupFile(final, digest, final.stat().st_size, records)


def copy_closed(journal: Path, directory: Path) -> BackupFile:
    """Copy a journal that no process writes to (a file-system snapshot, a stopped node).

    What its write-ahead log holds is taken along; the files themselves are not touched.

    Raises:
        NotFound: there is none.
        Corrupt: the copy does not pass its check.
    """
    if not journal.is_file():
        raise NotFound(f"journal {journal} does not exist")
    # Not in /tmp: that is memory on many machines.
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".journal-", dir=directory) as scratch:
        taken = Path(scratch) / journal.name
        for suffix in ("", "-wal"):
            source = journal.with_name(journal.name + suffix)
            if source.exists():
                shutil.copyfile(source, taken.with_name(taken.name + suffix))
        with told_as_ours(journal), closing(sqlite3.connect(taken)) as found:
            return copy_to(found, directory)


def list_backups(directory: Path) -> list[BackupFile]:
    """The finished ones, oldest first; nothing is verified."""
    found: list[BackupFile] = []
    for path in sorted(directory.glob("journal-*.sqlite")):
        name = _NAME.match(path.name)
        if name and _digest_file(path).exists():
            stat = path.stat()
            found.append(BackupFile(path, _read_digest(path), stat.st_size, int(name[1])))
    return found


def verify_backup(path: Path) -> BackupFile:
    """Compare the hash and let SQLite check every page and the sequence of records.

    Raises:
        NotFound: no such backup.
        Corrupt: altered, or damaged.
    """
    if not path.is_file():
        raise NotFound(f"backup {path} does not exist")
    recorded, found = _read_digest(path), sha256_of(path)
    if recorded != found:
        raise Corrupt(f"backup {path} was altered: sha256 {found}, recorded {recorded}")
    return BackupFile(path, found, path.stat().st_size, _check(path))


def prune_backups(directory: Path, keep: int, newest: Path) -> list[Path]:
    """Remove all but the newest `keep` (at least one); returns what went.

    Args:
        directory: of one journal's copies.
        keep: how many stay.
        newest: the one just made. By number it need not be: after a restore the journal is shorter.
    """
    made = {one.path: one.path.stat().st_mtime for one in list_backups(directory)}
    stays = kept(in_order(made, newest.stat().st_mtime), Retention(keep))
    gone = [path for path in made if path not in stays]
    for path in gone:
        _digest_file(path).unlink()
        path.unlink()
    return gone


def restore_backup(backup: Path, journal: Path) -> BackupFile:
    """Verify, then put the copy in the place of a journal that is missing.

    It is marked as restored: what came after it was lost, see chain/restored.py.

    Raises:
        Rejected: a journal is already there; it is never overwritten.
        NotFound, Corrupt: see verify_backup.
    """
    verified = verify_backup(backup)
    if journal.exists():
        raise Rejected(f"journal {journal} exists; move it away before restoring over it")
    journal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = journal.with_name(f".{journal.name}.part")
    part.write_bytes(backup.read_bytes())
    part.chmod(0o600)
    with told_as_ours(part), closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (RESTORED_KEY, b"1"))
        # Copies made by older programs have none.
        copy.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (HISTORY_KEY, new_history()))
    _sync(part)
    # Leftovers of the lost file would be replayed into the restored one.
    for suffix in ("-wal", "-shm"):
        journal.with_name(journal.name + suffix).unlink(missing_ok=True)
    part.replace(journal)
    _sync(journal.parent)
    return verified


def head_of(backup: Path) -> JournalHead:
    """Read a copy's head; the same records and state give the same hash, whatever the file is.

    Raises:
        Corrupt: not a journal of ours, or written by a newer program.
    """
    digest = hashlib.sha256()
    with _opened(backup) as found:
        schema = schema_version(found)
        if not (schema and is_readable(found)):
            raise Corrupt(
                f"backup {backup} has schema {schema}, this program knows 1 to {len(MIGRATIONS)}:"
                " update the node first"
            )
        for query in _HEAD_QUERIES[:1] if schema == 1 else _HEAD_QUERIES:
            for row in found.execute(query):
                for value in row:
                    item = value if isinstance(value, bytes) else str(value).encode()
                    digest.update(b"%d:%s," % (len(item), item))
    return JournalHead(owner_of(backup), schema, _check(backup), digest.hexdigest())


def owner_of(backup: Path) -> str:
    """The account whose journal was copied.

    Raises:
        Corrupt: not a journal of ours.
    """
    owner = _meta(backup, "owner")
    if owner is None:
        raise Corrupt(f"backup {backup} names no owner")
    return owner.decode()


def history_of(backup: Path) -> str:
    """Which history a copy belongs to; "": made by an older program.

    Raises:
        Corrupt: not a journal of ours.
    """
    return (_meta(backup, HISTORY_KEY) or b"").decode()


def new_history() -> bytes:
    """A name for the history of a journal that begins."""
    return secrets.token_hex(8).encode()


def way_back(journal: Path, copies: Path) -> str:
    """What to do about a journal of a newer program that this one cannot read; "" if it can.

    Args:
        journal: closed.
        copies: directory of its local copies; the newest one that can be read is named.
    """
    try:
        if not journal.is_file() or _can_read(journal):
            return ""
        found = next(
            (one.path for one in reversed(list_backups(copies)) if _can_read(one.path)), ""
        )
    except Corrupt:
        return ""
    where = found or "latest"
    return (
        f"; start the newer version again, or go back: mv {journal} {journal}.newer, then"
        f" fabstir-node backup restore {where}"
    )


def _can_read(journal: Path) -> bool:
    with _opened(journal) as found:
        return is_readable(found)


def _meta(backup: Path, key: str) -> bytes | None:
    with _opened(backup) as found:
        row = found.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else bytes(row[0])


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with (
        told_as_ours(path),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as found,
    ):
        yield found


def _check(path: Path) -> int:
    with _opened(path) as connection:
        verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Corrupt(f"backup {path}: {verdict}")
        count, newest = connection.execute(
            "SELECT count(*), coalesce(max(sequence), 0) FROM records"
        ).fetchone()
        # Records up to a checkpoint are removed: the state stored beside them stands for them.
        stored = connection.execute("SELECT value FROM meta WHERE key = 'checkpoint'").fetchone()
    covered = int(stored[0]) if stored else 0
    if count != max(0, newest - covered):
        raise Corrupt(
            f"backup {path} has {count} records after its checkpoint {covered},"
            f" the newest is number {newest}"
        )
    return int(max(newest, covered))


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_digest(path: Path, digest: str) -> None:
    write_whole(_digest_file(path), f"{digest}  {path.name}\n".encode("ascii"))


def _read_digest(path: Path) -> str:
    try:
        return _digest_file(path).read_text("ascii").partition(" ")[0]
    except FileNotFoundError as error:
        raise NotFound(
            f"backup {path} has no {_digest_file(path).name}: it is unfinished"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
