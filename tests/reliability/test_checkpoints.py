"""A restart reads a snapshot and the records after it: the same state as from all records."""

import sqlite3
from contextlib import closing

import pytest

from nodeapp.chain import ledger as module
from nodeapp.chain.ledger import CursorMoved, Ledger
from nodeapp.core.outbox import TransactionMined, TransactionSigned
from nodeapp.core.session import (
    ClaimPrepared,
    ContractReceiveProofAccepted,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    TokensProduced,
)
from tests.fakes.paid_session import (
    HOST,
    JOB,
    RENTER_KEY,
    STARTED_AT,
    claim_of,
    opened,
    request_id,
    running_hash,
    sealed,
)

ONE = request_id(1)


async def open_ledger(tmp_path):
    return await Ledger.open(tmp_path / "j.db", owner=HOST, marker=tmp_path / "marker")


def seen(ledger):
    return (ledger.sessions, ledger.unsettled, ledger.cursor, ledger.outbox, ledger.mined)


async def live(ledger):
    """Every kind of field gets a value: two answers, one claim mined, one prepared."""
    await ledger.record(opened(), opened(job_id=8), CursorMoved(5, "0x05"))
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


def change_file(tmp_path, statement: str) -> list[int]:
    with closing(sqlite3.connect(tmp_path / "j.db", isolation_level=None)) as book:
        return [row[0] for row in book.execute(statement)]


def snapshots(tmp_path) -> list[int]:
    return change_file(tmp_path, "SELECT sequence FROM snapshots ORDER BY 1")


@pytest.mark.parametrize("every", [1, 7, 20])
async def test_a_restart_from_a_snapshot_is_a_restart_from_all_records(
    tmp_path, monkeypatch, every
):
    monkeypatch.setattr(module, "SNAPSHOT_RECORDS", every)
    ledger = await open_ledger(tmp_path)
    await live(ledger)
    before = seen(ledger)
    await ledger.close()
    assert snapshots(tmp_path)
    again = await open_ledger(tmp_path)
    assert seen(again) == before
    await again.close()
    change_file(tmp_path, "DELETE FROM snapshots")
    replayed = await open_ledger(tmp_path)
    assert seen(replayed) == before
    await replayed.close()


async def test_the_records_before_a_snapshot_are_not_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SNAPSHOT_RECORDS", 10)
    ledger = await open_ledger(tmp_path)
    await live(ledger)
    await ledger.close()
    after = []
    replay = module.journal.Journal.replay

    async def noted(book, sequence=0, limit=1000):
        after.append(sequence)
        return await replay(book, sequence, limit)

    monkeypatch.setattr(module.journal.Journal, "replay", noted)
    await (await open_ledger(tmp_path)).close()
    assert after[0] == snapshots(tmp_path)[-1] > 30


async def test_a_snapshot_of_another_version_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SNAPSHOT_RECORDS", 10)
    ledger = await open_ledger(tmp_path)
    await live(ledger)
    before = seen(ledger)
    await ledger.close()
    change_file(tmp_path, "UPDATE snapshots SET state = x'81a16101'")
    again = await open_ledger(tmp_path)
    assert seen(again) == before
    await again.close()
