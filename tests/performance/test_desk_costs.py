"""What one question to the ledger costs: a durable write each, the chain is never asked."""

from pathlib import Path

import pytest

from nodeapp.chain.desk import Desk
from nodeapp.chain.ledger import Ledger
from nodeapp.core.units import Tokens
from nodeapp.service.clock import SystemClock
from nodeapp.wire import ipc_chain as wire
from tests.fakes import paid_session


@pytest.fixture
async def ledger(tmp_path: Path):
    book = await Ledger.open(
        tmp_path / "journal.sqlite", owner="0x" + "11" * 20, marker=tmp_path / "marker"
    )
    await book.record(paid_session.opened())
    yield book
    await book.close()


async def written(ledger: Ledger) -> int:
    return ledger._book.last_sequence


async def test_authorise_is_one_write_and_needs_no_provider(ledger):
    desk = Desk(ledger, SystemClock())
    (job_id,) = ledger.sessions
    before = await written(ledger)
    request = wire.AuthoriseRequest(
        job_id=job_id, request_id="a" * 32, max_tokens=Tokens(50), sealed_prompt=b"sealed"
    )
    granted = await desk.authorise(request)
    assert granted.max_tokens == 50
    assert await written(ledger) == before + 1


async def test_a_batch_is_one_write_and_asking_again_is_none(ledger):
    desk = Desk(ledger, SystemClock())
    (job_id,) = ledger.sessions
    request = wire.AuthoriseRequest(
        job_id=job_id, request_id="a" * 32, max_tokens=Tokens(50), sealed_prompt=b"sealed"
    )
    await desk.authorise(request)
    before = await written(ledger)
    batch = wire.ProducedRequest(
        job_id=job_id, request_id="a" * 32, first_token=Tokens(0), token_ids=(1, 2, 3)
    )
    await desk.produced(batch)
    await desk.produced(batch)
    assert await written(ledger) == before + 1
