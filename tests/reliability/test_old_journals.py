"""A journal that an older node wrote is read by this one, record for record."""

import sqlite3
from contextlib import closing
from pathlib import Path

from nodeapp.chain.ledger import Ledger
from nodeapp.core.session import Phase
from nodeapp.core.steps import SealClaim, next_step
from tests.fakes.paid_session import HOST, JOB, RENTER_KEY, STARTED_AT, request_id

JOURNALS = Path(__file__).parent / "journals"


def written(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as book:
        book.executescript((JOURNALS / name).read_text("utf-8"))
    return path


async def opened(path: Path) -> Ledger:
    return await Ledger.open(path, owner=HOST, marker=path.with_suffix(".marker"))


def step(ledger: Ledger, job_id: int) -> object:
    return next_step(
        ledger.session(job_id),
        STARTED_AT + 100,
        interval_tokens=100,
        dispute_window_seconds=30,
    )


async def test_a_journal_of_schema_1_goes_on_where_it_was(tmp_path):
    path = written(tmp_path, "schema1.sql")
    ledger = await opened(path)
    session = ledger.session(JOB)
    assert (session.phase, session.renter_key) == (Phase.ACTIVE, RENTER_KEY)
    assert (session.claimed, session.covered, session.acknowledged) == (150, 250, 250)
    assert session.request is not None
    assert session.request.request_id == request_id(2)
    assert session.stream == (*range(150, 250), 7, 8, 9)
    assert isinstance(step(ledger, JOB), SealClaim)
    other = ledger.session(8)
    assert (other.phase, other.host_earnings, other.withdrawn) == (Phase.COMPLETED, 900, 900)
    assert step(ledger, 9) is None, "it has no claim; the older node's completion is still sent"
    assert list(ledger.outbox.pending) == ["complete/9"]
    assert sorted(ledger.mined) == ["claim/7/0", "complete/8"]
    assert ledger.cursor is not None
    assert (ledger.cursor.block_number, ledger.view.final) == (8, 8)
    before = (dict(ledger.sessions), ledger.view, ledger.outbox)
    await ledger.checkpoint()
    (archived,) = await ledger.archived(8)
    assert archived.session.withdrawn == 900
    await ledger.close()
    again = await opened(path)
    del before[0][8]
    assert (again.sessions, again.view, again.outbox) == before
    await again.close()
