"""A restart reads the stored state and the records after it: the same state as from all records."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from nodeapp.chain import ledger as module
from nodeapp.chain.desk import Desk
from nodeapp.chain.ledger import (
    CursorMoved,
    RewoundTo,
    TransactionDropped,
    TransactionMined,
    TransactionSigned,
)
from nodeapp.core.errors import Corrupt, NotFound, PaymentRequired, Unavailable
from nodeapp.core.session import (
    ClaimPrepared,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    EarningsWithdrawn,
    Phase,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import LEFT_SECONDS, overdue_at
from nodeapp.wire.ipc_chain import OpenSessionRequest
from tests.fakes.clock import FakeClock
from tests.fakes.ledger_facts import all_of
from tests.fakes.paid_session import (
    JOB,
    RENTER,
    RENTER_KEY,
    STARTED_AT,
    claim_of,
    open_ledger,
    opened,
    request_id,
    running_hash,
    sealed,
)

ONE = request_id(1)


async def live(ledger):
    """Every kind of field gets a value: two answers, one claim mined, one prepared."""
    await ledger.record(opened(), opened(job_id=8), CursorMoved(5, "0x05", 2))
    await ledger.record(RenterAuthenticated(JOB, RENTER_KEY))
    await ledger.record(RequestAuthorised(JOB, ONE, 500, b"sealed"))
    ids = list(range(300))
    for start in range(0, 300, 10):
        await ledger.record(TokensProduced(JOB, ONE, tuple(ids[start : start + 10])))
    await ledger.record(RenterSentReceipt(JOB, 250, running_hash(ids[:250]), bytes(65)))
    await ledger.record(ClaimPrepared(JOB, claim_of(ledger.session(JOB), 150)))
    await ledger.record(sealed(ledger.session(JOB).claim))
    proof = ledger.session(JOB).claim.proof_hash
    await ledger.record(TransactionSigned("claim/7/0", 0, "0xaa", b"raw"))
    await ledger.record(TransactionMined("claim/7/0", "0xaa", 21_000, 6))
    await ledger.record(ContractReceiveProofAccepted(JOB, 150, proof, STARTED_AT + 5))
    await ledger.record(RequestEnded(JOB, ONE, "stop"))
    await ledger.record(ClaimPrepared(JOB, claim_of(ledger.session(JOB), 100)))
    await ledger.record(TransactionSigned("complete/8", 1, "0xbb", b"raw"))


def query(tmp_path, statement: str) -> list[int]:
    with closing(sqlite3.connect(tmp_path / "j.db", isolation_level=None)) as book:
        return [row[0] for row in book.execute(statement)]


async def test_a_restart_from_a_checkpoint_is_the_state_that_was_left(tmp_path):
    ledger = await open_ledger(tmp_path)
    await live(ledger)
    await ledger.checkpoint()
    await ledger.record(opened(job_id=9), TransactionMined("complete/8", "0xbb", 30_000, 7))
    before = all_of(ledger)
    await ledger.close()
    assert len(query(tmp_path, "SELECT sequence FROM records")) == 2
    again = await open_ledger(tmp_path)
    assert all_of(again) == before
    # Rows written by the first checkpoint are not written again, and none is lost by that.
    await again.checkpoint()
    await again.close()
    third = await open_ledger(tmp_path)
    assert all_of(third) == before
    await third.close()


async def test_checkpoints_come_by_themselves_and_bound_the_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_RECORDS", 10)
    ledger = await open_ledger(tmp_path)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(ledger.keep_short())
        for number in range(200):
            await ledger.record(CursorMoved(number, f"0x{number}"))
        keeper.cancel()
    await ledger.close()
    assert len(query(tmp_path, "SELECT sequence FROM records")) < 30
    again = await open_ledger(tmp_path)
    assert again.cursor.block_number == 199
    await again.close()


async def test_a_row_that_cannot_be_read_stops_the_process(tmp_path):
    ledger = await open_ledger(tmp_path)
    await live(ledger)
    await ledger.checkpoint()
    await ledger.close()
    query(tmp_path, "UPDATE states SET payload = x'81a16101' WHERE key = 'session/7'")
    with pytest.raises(Corrupt, match="row session/7 cannot be read"):
        await open_ledger(tmp_path)


async def settled(ledger, job_id=JOB, block=20):
    await ledger.record(
        opened(job_id=job_id),
        ContractReceiveSessionEnded(job_id, Phase.COMPLETED, 900, 100, block),
        TransactionSigned(f"complete/{job_id}", 0, "0xcc", b"raw"),
        TransactionMined(f"complete/{job_id}", "0xcc", 30_000, block),
        EarningsWithdrawn(job_id, 900, block),
    )


async def test_what_is_over_for_good_goes_to_the_archive(tmp_path):
    ledger = await open_ledger(tmp_path)
    await settled(ledger)
    await ledger.record(opened(job_id=8), CursorMoved(19, "0x19", 19))
    await ledger.checkpoint()
    assert JOB in ledger.sessions, "block 20 may still be taken back"
    await ledger.record(CursorMoved(30, "0x30", 20))
    session = ledger.session(JOB)
    await ledger.checkpoint()
    (archived,) = await ledger.archived(JOB)
    assert (archived.session.terms, archived.session.ended) == (session.terms, session.ended)
    assert [one.key for one in archived.transactions] == [f"complete/{JOB}"]
    assert (list(ledger.sessions), ledger.mined) == ([8], {})
    with pytest.raises(NotFound):
        await ledger.record(EarningsWithdrawn(JOB, 900))
    before = all_of(ledger)
    await ledger.close()
    again = await open_ledger(tmp_path)
    assert all_of(again) == before
    assert [one.session.terms.job_id for _, one in await again.archive_after(0)] == [JOB]
    await again.close()


async def test_a_vanished_session_is_archived_when_it_cannot_come_back(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(CursorMoved(4, "0x04", 0), opened(block=5), CursorMoved(5, "0x05", 0))
    await ledger.record(RewoundTo(4, "0x04"), CursorMoved(6, "0x06", 3))
    await ledger.checkpoint()
    assert ledger.session(JOB).phase is Phase.VANISHED
    await ledger.record(CursorMoved(20, "0x20", 6))
    await ledger.checkpoint()
    assert ledger.sessions == {}
    assert (await ledger.archived(JOB))[0].session.opened_in is None
    await ledger.close()


async def test_a_session_left_to_its_renter_is_archived_a_day_after_its_time_out(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened(block=5), opened(job_id=8, block=5), SessionClosing(JOB, "idle"))
    await ledger.record(TransactionSigned(f"complete/{JOB}", 0, "0xcc", b"raw"))
    end = overdue_at(ledger.session(JOB)) + LEFT_SECONDS

    async def left_at(time, final):
        ledger.time = time
        await ledger.record(CursorMoved(final + 10, f"{final:#x}", final))
        await ledger.checkpoint()
        return sorted(ledger.unsettled)

    assert await left_at(end, 4) == [JOB, 8], "its creation may still be taken back"
    assert await left_at(end, 5) == [JOB, 8], "what an older node signed may still be mined"
    await ledger.record(TransactionDropped(f"complete/{JOB}", "given up"))
    assert await left_at(end - 1, 6) == [JOB, 8], "the renter may still end it"
    assert await left_at(end, 7) == [8], "the other one is open"
    (archived,) = await ledger.archived(JOB)
    assert archived.session.phase is Phase.CLOSING
    await ledger.close()
    again = await open_ledger(tmp_path)
    assert sorted(again.sessions) == [8]
    open_again = OpenSessionRequest(job_id=JOB, renter=RENTER, renter_key=RENTER_KEY)
    with pytest.raises(PaymentRequired, match="is closing; open a new session"):
        await Desk(again, FakeClock()).open_session(open_again)
    await again.close()


async def test_a_full_disk_leaves_everything_where_it_was(tmp_path, monkeypatch):
    ledger = await open_ledger(tmp_path)
    await settled(ledger)
    await ledger.record(CursorMoved(90, "0x90", 26))
    before = all_of(ledger)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module.journal.Journal, "_checkpoint", full)
        with pytest.raises(Unavailable, match="full"):
            await ledger.checkpoint()
    assert all_of(ledger) == before
    await ledger.checkpoint()
    assert ledger.sessions == {}
    await ledger.close()
