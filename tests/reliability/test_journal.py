"""The journal keeps what it acknowledged, has one owner, and notices when it is gone."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import Corrupt, Rejected, Unavailable
from nodeapp.store.backups import list_backups, prune_backups, restore_backup, verify_backup
from nodeapp.store.journal import MAX_PAYLOAD_BYTES, Change, Journal, Record

OWNER = "0x00000000000000000000000000000000000000aa"
ROOT = Path(__file__).resolve().parents[2]


async def open_journal(path: Path, *, must_exist: bool = False, owner: str = OWNER) -> Journal:
    return await Journal.open(path, owner=owner, must_exist=must_exist)


async def replay_all(journal: Journal, after: int = 0) -> list[Record]:
    found: list[Record] = []
    while batch := await journal.replay(after + len(found), limit=7):
        found += batch
    return found


async def test_replay_gives_back_what_was_appended_in_order(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    assert await journal.append([Change("a", b"1"), Change("b", b"2")]) == 2
    assert await journal.append([Change("c", b"\x00\xff")]) == 3
    await journal.close()
    again = await open_journal(tmp_path / "j.sqlite", must_exist=True)
    assert await replay_all(again) == [
        Record(1, "a", b"1"),
        Record(2, "b", b"2"),
        Record(3, "c", b"\x00\xff"),
    ]
    assert again.last_sequence == 3
    await again.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.binary(max_size=40), max_size=5), max_size=8))
def test_property_any_batches_survive_a_reopen(tmp_path_factory, batches):
    async def scenario() -> None:
        path = tmp_path_factory.mktemp("journal") / "j.sqlite"
        journal = await open_journal(path)
        for batch in batches:
            await journal.append([Change("x", item) for item in batch])
        await journal.close()
        again = await open_journal(path)
        assert [record.payload for record in await replay_all(again)] == [
            item for batch in batches for item in batch
        ]
        await again.close()

    asyncio.run(scenario())


async def test_concurrent_appends_get_distinct_consecutive_places(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(journal.append([Change("x", str(n).encode())])) for n in range(40)
        ]
    assert sorted(task.result() for task in running) == list(range(1, 41))
    assert len(await replay_all(journal)) == 40
    await journal.close()


async def test_a_second_opener_is_refused_and_told_the_process(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    with pytest.raises(Unavailable, match=f"process {os.getpid()}"):
        await open_journal(tmp_path / "j.sqlite")
    await journal.close()
    await (await open_journal(tmp_path / "j.sqlite")).close()


async def test_a_missing_journal_of_a_known_owner_refuses_to_start(tmp_path):
    path, marker = tmp_path / "j.sqlite", tmp_path / "keys" / "journal-made"
    marker.parent.mkdir()
    journal = await Journal.open(path, owner=OWNER, must_exist=False, marker=marker)
    await journal.close()
    path.unlink()
    with pytest.raises(Corrupt, match="missing although it existed"):
        await Journal.open(path, owner=OWNER, must_exist=False, marker=marker)
    with pytest.raises(Corrupt, match="missing although it existed"):
        await open_journal(tmp_path / "other.sqlite", must_exist=True)
    assert not path.exists()


async def open_in(state: Path, marker: Path, *, note: bool = True) -> Journal:
    path = state / "chain" / "journal.db"
    return await Journal.open(path, owner=OWNER, must_exist=False, marker=marker, note=note)


async def test_a_journal_looked_for_in_the_wrong_place_is_named_with_the_way_to_it(tmp_path):
    marker, one, other = tmp_path / "host.json.journal", tmp_path / "one", tmp_path / "other"
    journal = await open_in(one, marker)
    await journal.append([Change("x", b"1")])
    await journal.close()
    with pytest.raises(Corrupt) as caught:
        await open_in(other, marker)
    assert f"it is {one}/chain/journal.db, says {marker}" in caught.value.message
    assert f"run with --state-dir {one} " in caught.value.message
    assert not (other / "chain/journal.db").exists()
    # The command it names is what brings it here.
    command = caught.value.message.partition("no node runs: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    moved = await open_in(other, marker)
    assert [record.payload for record in await replay_all(moved)] == [b"1"]
    await moved.close()
    assert marker.read_text() == f"{OWNER}\n{other}/chain/journal.db\n"
    with pytest.raises(Corrupt, match=f"it is {other}/chain/journal.db"):
        await open_in(one, marker)


async def test_a_journal_that_only_another_user_may_see_is_named_as_well(tmp_path):
    marker, gone = tmp_path / "host.json.journal", tmp_path / "gone"
    await (await open_in(gone, marker)).close()
    shutil.rmtree(gone)
    with pytest.raises(Corrupt, match=f"it is {gone}/chain/journal.db.*if it is gone, restore it"):
        await open_in(tmp_path / "here", marker)


async def test_of_two_journals_of_one_account_only_the_noted_one_opens(tmp_path):
    marker, one, copy = tmp_path / "host.json.journal", tmp_path / "one", tmp_path / "copy"
    await (await open_in(one, marker)).close()
    shutil.copytree(one, copy)
    with pytest.raises(Corrupt, match="has two journals"):
        await open_in(copy, marker)
    await (await open_in(one, marker)).close()
    shutil.rmtree(one)
    await (await open_in(copy, marker)).close()
    assert marker.read_text().endswith(f"{copy}/chain/journal.db\n")


async def test_the_same_journal_by_another_way_is_no_second_one(tmp_path):
    marker, one = tmp_path / "host.json.journal", tmp_path / "one"
    await (await open_in(one, marker)).close()
    (tmp_path / "link").symlink_to(one)
    await (await open_in(tmp_path / "link", marker)).close()


async def test_a_marker_of_an_older_node_protects_and_learns_the_path(tmp_path):
    marker, state = tmp_path / "host.json.journal", tmp_path / "state"
    marker.write_text(f"{OWNER}\n")
    with pytest.raises(Corrupt, match="missing although it existed; restore it from a backup"):
        await open_in(state, marker)
    marker.unlink()
    await (await open_in(state, marker)).close()
    marker.write_text(f"{OWNER}\n")
    await (await open_in(state, marker, note=False)).close()
    assert marker.read_text() == f"{OWNER}\n", "who only reads notes nothing"
    await (await open_in(state, marker)).close()
    assert marker.read_text() == f"{OWNER}\n{state}/chain/journal.db\n"


async def test_another_key_in_the_same_file_leaves_the_note_of_the_first(tmp_path):
    marker, one, other = tmp_path / "host.json.journal", tmp_path / "one", tmp_path / "other"
    await (await open_in(one, marker)).close()
    noted, second = marker.read_text(), other / "chain" / "journal.db"
    with pytest.raises(Corrupt, match=f"notes the one of {OWNER}, whose key was in this keystore"):
        await Journal.open(second, owner="0xbb", must_exist=False, marker=marker)
    assert not second.exists()
    # A journal of its own, made while the key had a file of its own.
    await (await Journal.open(second, owner="0xbb", must_exist=False)).close()
    await (await Journal.open(second, owner="0xbb", must_exist=True, marker=marker)).close()
    assert marker.read_text() == noted


async def test_another_owner_is_refused(tmp_path):
    await (await open_journal(tmp_path / "j.sqlite")).close()
    with pytest.raises(Corrupt, match="belongs to 0x00"):
        await open_journal(tmp_path / "j.sqlite", owner="0xbb")


async def test_damage_is_noticed_when_it_is_opened(tmp_path):
    path = tmp_path / "j.sqlite"
    journal = await open_journal(path)
    await journal.append([Change("x", os.urandom(3000)) for _ in range(20)])
    await journal.close()
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 6] = b"\xff" * (4096 * 3)
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        await open_journal(path)


async def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "j.sqlite"
    await (await open_journal(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Corrupt, match="newer version"):
        await open_journal(path)


async def test_a_payload_over_the_limit_is_refused_whole(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    with pytest.raises(Corrupt, match="at most"):
        await journal.append([Change("a", b"1"), Change("b", b"x" * (MAX_PAYLOAD_BYTES + 1))])
    assert await replay_all(journal) == []
    await journal.close()


async def test_a_checkpoint_stands_for_the_records_before_it(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    assert await journal.stored_state() == (0, {})
    await journal.append([Change("x", b"%d" % number) for number in range(1, 6)])
    await journal.checkpoint(4, {"a": b"1", "b": b"2"}, [], [(7, b"old")])
    await journal.append([Change("tail", b"6")])
    await journal.checkpoint(5, {"b": b"3"}, ["a"], [(7, b"older"), (8, b"other")])
    assert await journal.stored_state() == (5, {"b": b"3"})
    assert await replay_all(journal, after=5) == [Record(6, "tail", b"6")]
    assert await journal.archived(7) == [b"old", b"older"]
    assert await journal.archive_after(1, 10) == [(2, b"older"), (3, b"other")]
    with pytest.raises(Corrupt, match="record 1 is missing"):
        await replay_all(journal)
    for wrong in (4, 7):
        with pytest.raises(Corrupt, match="the journal ends at 6"):
            await journal.checkpoint(wrong, {}, [], [])
    await journal.close()


async def test_numbering_goes_on_after_a_checkpoint_took_all_records(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    await journal.append([Change("x", b"")] * 3)
    await journal.checkpoint(3, {"a": b"1"}, [], [])
    await journal.close()
    again = await open_journal(tmp_path / "j.sqlite")
    assert again.last_sequence == 3
    assert await again.append([Change("y", b"")]) == 4
    backup = await again.backup(tmp_path / "backups")
    assert verify_backup(backup.path).records == 4
    await again.close()


async def test_meta_values_are_durable(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    assert await journal.get_meta("cursor") is None
    await journal.put_meta("cursor", b"41")
    await journal.put_meta("cursor", b"42")
    await journal.close()
    again = await open_journal(tmp_path / "j.sqlite")
    assert await again.get_meta("cursor") == b"42"
    await again.close()


async def test_a_closed_journal_answers_unavailable(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    await journal.close()
    with pytest.raises(Unavailable, match="closed"):
        await journal.append([Change("x", b"")])


async def test_a_backup_verifies_restores_and_shows_alteration(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    await journal.append([Change("x", str(n).encode()) for n in range(50)])
    backup = await journal.backup(tmp_path / "backups")
    await journal.append([Change("later", b"")])
    await journal.close()
    assert backup.records == 50
    assert verify_backup(backup.path) == backup == list_backups(tmp_path / "backups")[0]
    with pytest.raises(Rejected, match=r"never|exists"):
        restore_backup(backup.path, tmp_path / "j.sqlite")
    (tmp_path / "j.sqlite").unlink()
    restore_backup(backup.path, tmp_path / "j.sqlite")
    restored = await open_journal(tmp_path / "j.sqlite", must_exist=True)
    assert len(await replay_all(restored)) == 50
    await restored.close()
    content = bytearray(backup.path.read_bytes())
    content[len(content) // 2] ^= 1
    backup.path.write_bytes(content)
    with pytest.raises(Corrupt, match="altered"):
        verify_backup(backup.path)


async def test_pruning_keeps_the_newest_backups(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    for _ in range(4):
        await journal.append([Change("x", b"")])
        made = await journal.backup(tmp_path / "b")
    await journal.close()
    assert len(prune_backups(tmp_path / "b", 2, made.path)) == 2
    assert [backup.records for backup in list_backups(tmp_path / "b")] == [3, 4]


async def test_after_a_restore_the_copies_of_the_shorter_journal_stay(tmp_path):
    journal = await open_journal(tmp_path / "j.sqlite")
    await journal.append([Change("x", b"")])
    made = await journal.backup(tmp_path / "b")
    for number, seconds in ((8, 1e9), (9, 9e9)):  # long ago, in the future
        for name in (f"journal-{number:012d}.sqlite", f"journal-{number:012d}.sqlite.sha256"):
            (tmp_path / "b" / name).write_bytes(b"of the journal that was lost")
            os.utime(tmp_path / "b" / name, (seconds, seconds))
    await journal.close()
    prune_backups(tmp_path / "b", 2, made.path)
    assert [backup.records for backup in list_backups(tmp_path / "b")] == [1, 8]
    prune_backups(tmp_path / "b", 1, made.path)
    assert [backup.records for backup in list_backups(tmp_path / "b")] == [1]


WRITER = """
import asyncio, sys
from pathlib import Path
from nodeapp.store.journal import Change, Journal

async def main() -> None:
    journal = await Journal.open(Path(sys.argv[1]), owner=sys.argv[2], must_exist=False)
    while True:
        last = await journal.append([Change("x", b"a" * 100), Change("y", b"b" * 5000)])
        print(last, flush=True)

asyncio.run(main())
"""


async def test_kill_in_the_middle_of_appends_loses_nothing_acknowledged(tmp_path):
    path = tmp_path / "j.sqlite"
    for round_number in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), OWNER],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as writer:
            assert writer.stdout is not None
            for _ in range(20 + round_number):
                acknowledged = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
            writer.wait(timeout=10)
        journal = await open_journal(path, must_exist=True)
        records = await replay_all(journal)
        assert len(records) >= acknowledged
        assert len(records) % 2 == 0, "a batch is written whole or not at all"
        await journal.close()
