"""Numbered changes of the journal's tables; `user_version` says how many were applied.

Rules of this file: an entry that was released is never edited, one is appended. What a release
writes must be readable by the release before it, because an update on trial may fall back after it
opened the journal: a migration that the release before can live with `is_additive` (a new table, an
index, a column with a default, and no new kind of record in the old ones); one that it cannot is
released only when the release before knows it already and does not use it yet. `least_reader`,
beside `user_version`, is what a program must know to read the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import Corrupt

LEAST_READER_KEY = "least_reader"
"""Meta: "<user_version>/<least reader>"; missing or of another version: they are the same."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step; SQL statements of one transaction."""

    statements: tuple[str, ...]
    is_additive: bool = False
    """A program that does not know it reads and writes the file all the same."""


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        (
            """CREATE TABLE records (
                sequence INTEGER PRIMARY KEY,
                kind TEXT NOT NULL,
                payload BLOB NOT NULL
            ) STRICT""",
            """CREATE TABLE snapshots (
                sequence INTEGER PRIMARY KEY,
                state BLOB NOT NULL
            ) STRICT""",
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
        )
    ),
    Migration(
        (
            # Records were never removed before, so no snapshot holds what they do not.
            "DROP TABLE snapshots",
            "CREATE TABLE states (key TEXT PRIMARY KEY, payload BLOB NOT NULL) STRICT",
            """CREATE TABLE archive (
                place INTEGER PRIMARY KEY,
                subject INTEGER NOT NULL,
                payload BLOB NOT NULL
            ) STRICT""",
            "CREATE INDEX archive_subject ON archive (subject)",
        )
    ),
)
"""Never edit an entry that was released: append one."""


def schema_version(connection: sqlite3.Connection) -> int:
    """How many migrations this file has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def is_readable(connection: sqlite3.Connection, known: int = len(MIGRATIONS)) -> bool:
    """Whether a program that knows so many migrations may use the file as it is."""
    version = schema_version(connection)
    return version <= known or _least_reader(connection, version) <= known


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS
) -> None:
    """Bring the file to the newest schema, each step in its own transaction.

    A file of a newer program that this one can read is left as it is.

    Raises:
        Corrupt: the file was written by a newer program and this one cannot read it.
    """
    version = schema_version(connection)
    if not is_readable(connection, len(migrations)):
        raise Corrupt(
            f"{path} has schema {version}, readable from {_least_reader(connection, version)} on,"
            f" this program knows {len(migrations)}: it was written by a newer version"
        )
    for number, migration in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        least = _least_reader(connection, number - 1) if migration.is_additive else number
        for statement in migration.statements:
            connection.execute(statement)
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            (LEAST_READER_KEY, b"%d/%d" % (number, least)),
        )
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")


def _least_reader(connection: sqlite3.Connection, version: int) -> int:
    if not version:
        return 0
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (LEAST_READER_KEY,)).fetchone()
    written_for, _, least = bytes(row[0]).partition(b"/") if row else (b"", b"", b"")
    return int(least) if written_for == b"%d" % version else version
