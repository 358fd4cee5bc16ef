"""An update that changed the journal and fell back: the release before goes on, or says how to."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nodeapp.core.errors import Corrupt
from nodeapp.store.backups import head_of, restore_backup, way_back
from nodeapp.store.journal import Change, Journal
from nodeapp.store.migrations import MIGRATIONS, Migration, is_readable, migrate, schema_version

OWNER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
ADDITIVE = Migration(("CREATE TABLE of_the_next_release (x TEXT) STRICT",), is_additive=True)
ADDITIVE_TOO = Migration(("CREATE INDEX more ON archive (payload)",), is_additive=True)
BREAKING = Migration(("ALTER TABLE records RENAME COLUMN payload TO content",))


async def opened(path: Path) -> Journal:
    return await Journal.open(path, owner=OWNER, must_exist=False)


async def written(path: Path) -> None:
    journal = await opened(path)
    await journal.append([Change("Deposited", b"1")])
    await journal.close()


def migrated_by_a_trial(path: Path, *more: Migration) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as book:
        migrate(book, path, (*MIGRATIONS, *more))


async def test_the_release_before_reads_and_writes_a_journal_with_an_additive_change(tmp_path):
    path = tmp_path / "journal.db"
    await written(path)
    migrated_by_a_trial(path, ADDITIVE, ADDITIVE_TOO)
    journal = await opened(path)
    assert await journal.append([Change("Deposited", b"2")]) == 2
    copy = await journal.backup(tmp_path / "copies")
    await journal.close()
    # Its backups can be read and restored as well.
    assert head_of(copy.path).schema == len(MIGRATIONS) + 2
    assert way_back(path, tmp_path / "copies") == ""
    # The next try goes on from what the first one made.
    migrated_by_a_trial(path, ADDITIVE, ADDITIVE_TOO)
    with closing(sqlite3.connect(path)) as book:
        assert schema_version(book) == len(MIGRATIONS) + 2
        assert book.execute("SELECT count(*) FROM records").fetchone() == (2,)
        assert not is_readable(book, len(MIGRATIONS) - 1)


async def test_a_breaking_change_is_refused_and_the_copy_from_before_is_named(tmp_path):
    path, copies = tmp_path / "journal.db", tmp_path / "copies"
    await written(path)
    journal = await opened(path)
    before = await journal.backup(copies)
    await journal.append([Change("Deposited", b"2")])
    await journal.close()
    migrated_by_a_trial(path, BREAKING, ADDITIVE)
    with pytest.raises(Corrupt, match=r"schema 4, readable from 3 on, this program knows 2"):
        await opened(path)
    # A copy that the trial made is of no use to the release before.
    with closing(sqlite3.connect(path)) as book:
        newer = copies / "journal-000000000002.sqlite"
        with closing(sqlite3.connect(newer)) as copy:
            book.backup(copy)
    newer.with_name(newer.name + ".sha256").write_text("00  x\n")
    told = way_back(path, copies)
    assert f"mv {path} {path}.newer" in told
    assert told.endswith(f"fabstir-node backup restore {before.path}")
    path.rename(tmp_path / "journal.db.newer")
    restore_backup(before.path, path)
    journal = await opened(path)
    assert journal.last_sequence == 1
    await journal.close()


async def test_without_such_a_copy_the_repository_is_named(tmp_path):
    path = tmp_path / "journal.db"
    await written(path)
    migrated_by_a_trial(path, BREAKING)
    assert way_back(path, tmp_path / "none").endswith("fabstir-node backup restore latest")
    assert way_back(tmp_path / "missing.db", tmp_path / "none") == ""
