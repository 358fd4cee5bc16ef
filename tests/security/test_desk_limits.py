"""Strangers at the money desk, and sessions whose time on chain runs out."""

import asyncio

import pytest

from nodeapp.chain import desk as desk_module
from nodeapp.chain.desk import MAX_WAITING_OPENS, Desk
from nodeapp.core.errors import Busy, PaymentRequired
from nodeapp.core.session import Phase
from nodeapp.service.clock import SystemClock
from nodeapp.wire import ipc_chain as wire
from tests.fakes.paid_session import JOB, RENTER, RENTER_KEY, STARTED_AT, open_ledger, opened


@pytest.fixture
async def ledger(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened())
    yield ledger
    await ledger.close()


def open_request(job_id: int) -> wire.OpenSessionRequest:
    return wire.OpenSessionRequest(job_id=job_id, renter=RENTER, renter_key=RENTER_KEY)


async def test_sessions_that_do_not_exist_cannot_take_every_connection(ledger, monkeypatch):
    monkeypatch.setattr(desk_module, "CONFIRMATION_SECONDS", 0.2)
    desk = Desk(ledger, SystemClock())
    outcomes = []

    async def ask(job_id):
        try:
            await desk.open_session(open_request(job_id))
        except (Busy, PaymentRequired) as error:
            outcomes.append(type(error))

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for number in range(MAX_WAITING_OPENS + 20):
            tasks.create_task(ask(1000 + number))
    assert outcomes.count(Busy) == 20
    assert outcomes.count(PaymentRequired) == MAX_WAITING_OPENS
    with pytest.raises(PaymentRequired):  # the places are free again
        await desk.open_session(open_request(5000))


async def test_a_known_session_opens_while_strangers_wait(ledger):
    desk = Desk(ledger, SystemClock())
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        strangers = [
            tasks.create_task(desk.open_session(open_request(1000 + number)))
            for number in range(MAX_WAITING_OPENS)
        ]
        await asyncio.sleep(0)
        assert (await desk.open_session(open_request(JOB))).job_id == JOB
        for stranger in strangers:
            assert not stranger.done()
            stranger.cancel()


async def test_a_session_is_closed_before_its_duration_ends(ledger):
    desk = Desk(ledger, SystemClock())
    await desk.close_running_out(STARTED_AT + 3299)
    assert ledger.session(JOB).phase is Phase.ACTIVE
    await desk.close_running_out(STARTED_AT + 3300)
    assert ledger.session(JOB).phase is Phase.CLOSING
