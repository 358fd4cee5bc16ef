"""The ledger's memory is always what a replay of its journal gives."""

import asyncio
import threading

import pytest

from nodeapp.chain.ledger import CursorMoved
from nodeapp.core.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from nodeapp.core.outbox import TransactionDropped, TransactionMined, TransactionSigned
from nodeapp.core.session import RequestAuthorised, TokensProduced
from nodeapp.store import journal
from tests.fakes.paid_session import JOB, open_ledger, opened, request_id

ASK = RequestAuthorised(JOB, request_id(1), 500, b"sealed")


def made(*ids):
    return TokensProduced(JOB, request_id(1), ids)


async def reopened(ledger, tmp_path):
    await ledger.close()
    return await open_ledger(tmp_path)


async def test_replay_gives_the_same_state(tmp_path):
    ledger = await open_ledger(tmp_path)
    cursor = CursorMoved(5, "0x05")
    await ledger.record(opened(), cursor)
    await ledger.record(ASK, made(1, 2, 3))
    await ledger.record(TransactionSigned("a", 0, "0xaa", b"raw"))
    await ledger.record(TransactionSigned("b", 1, "0xbb", b"raw"))
    await ledger.record(TransactionSigned("c", 2, "0xcc", b"raw"))
    await ledger.record(TransactionMined("a", "0xaa", 1, 6), TransactionDropped("b", "refused"))
    before = (dict(ledger.sessions), ledger.outbox, dict(ledger.mined), ledger.cursor)
    again = await reopened(ledger, tmp_path)
    assert (again.sessions, again.outbox, again.mined, again.cursor) == before
    assert list(again.outbox.pending) == ["c"]
    assert again.session(JOB).stream == (1, 2, 3)
    await again.close()


async def test_a_refused_entry_leaves_nothing_of_its_batch(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened())
    with pytest.raises(InvalidRequest, match="not open"):
        await ledger.record(CursorMoved(9, "0x09"), made(1))
    assert ledger.cursor is None
    again = await reopened(ledger, tmp_path)
    assert again.cursor is None
    await again.close()


async def test_an_unknown_session_is_not_found(tmp_path):
    ledger = await open_ledger(tmp_path)
    with pytest.raises(NotFound, match="session 7"):
        await ledger.record(ASK)
    await ledger.close()


async def test_opening_a_session_twice_in_one_batch_keeps_what_came_between(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened(), ASK, opened())
    assert ledger.session(JOB).request is not None
    again = await reopened(ledger, tmp_path)
    assert again.session(JOB).request is not None
    await again.close()


async def test_a_caller_cancelled_in_mid_write_does_not_part_memory_from_journal(
    tmp_path, monkeypatch
):
    """p2p hangs up: its handler is cancelled while the journal's thread is writing."""
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened(), ASK)
    writing, go_on = threading.Event(), threading.Event()
    commit = journal.Journal._append

    def slow_disk(self, changes):
        writing.set()
        assert go_on.wait(10)
        return commit(self, changes)

    monkeypatch.setattr(journal.Journal, "_append", slow_disk)
    handler = asyncio.get_running_loop().create_task(ledger.record(made(1, 2)))
    await asyncio.to_thread(writing.wait, 10)
    handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler
    go_on.set()
    await ledger.record(CursorMoved(1, "0x01"))
    assert ledger.session(JOB).stream == (1, 2)
    again = await reopened(ledger, tmp_path)
    assert again.session(JOB).stream == (1, 2)
    await again.close()


async def test_what_is_journalled_but_not_published_at_a_crash_is_there_after_replay(
    tmp_path, monkeypatch
):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened(), ASK)

    def die(*_):
        raise SystemError("killed between append and publish")

    monkeypatch.setattr(ledger, "_publish", die)
    with pytest.raises(SystemError):
        await ledger.record(made(1, 2, 3))
    assert ledger.session(JOB).stream == ()
    again = await reopened(ledger, tmp_path)
    assert again.session(JOB).stream == (1, 2, 3)
    await again.close()


async def test_waiters_are_told_of_every_change(tmp_path):
    ledger = await open_ledger(tmp_path)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(ledger.wait_for_change())
        await asyncio.sleep(0)
        await ledger.record(opened())
        await waiter
    await ledger.close()


async def test_choosing_sees_every_earlier_write(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened(), ASK)

    def next_token():
        return [made(ledger.session(JOB).produced)]

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(ledger.decide(next_token))
    assert ledger.session(JOB).stream == tuple(range(20))
    await ledger.close()


async def test_a_missing_journal_of_a_known_wallet_is_not_begun_anew(tmp_path):
    await (await open_ledger(tmp_path)).close()
    (tmp_path / "j.db").unlink()
    with pytest.raises(Corrupt):
        await open_ledger(tmp_path)


async def test_a_record_that_does_not_replay_stops_the_process(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger._book.append([journal.Change("Nonsense", b"\xc1")])
    with pytest.raises(Corrupt, match=r"record 1 \(Nonsense\) does not replay"):
        await reopened(ledger, tmp_path)
    # the failed open gave the lock back
    with pytest.raises(Corrupt):
        await open_ledger(tmp_path)


async def test_a_closed_ledger_is_unavailable(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.close()
    with pytest.raises(Unavailable, match="closed"):
        await ledger.record(opened())
