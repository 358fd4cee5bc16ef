"""Numbered changes of the journal's tables; `user_version` says how many were applied."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from nodeapp.core.errors import Corrupt

MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
    ),
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
    ),
)
"""Never edit an entry that was released: append one."""


def schema_version(connection: sqlite3.Connection) -> int:
    """How many migrations this file has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest schema, each step in its own transaction.

    Raises:
        Corrupt: the file was written by a newer program.
    """
    version = schema_version(connection)
    if version > len(MIGRATIONS):
        raise Corrupt(
            f"{path} has schema {version}, this program knows {len(MIGRATIONS)}: "
            "it was written by a newer version"
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
