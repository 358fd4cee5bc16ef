"""Before the first token, and with every batch: is this session one that will pay?"""

import msgspec
import pytest

from nodeapp.chain import desk as desk_module
from nodeapp.chain.desk import Desk
from nodeapp.chain.gate import confirmations_for
from nodeapp.chain.ledger import CursorMoved, RewoundTo
from nodeapp.core.errors import Busy, PaymentRequired
from nodeapp.core.session import ContractReceiveProofAccepted, ContractReceiveSessionEnded, Phase
from nodeapp.wire import ipc_chain as wire
from tests.fakes.clock import FakeClock
from tests.fakes.gate import View
from tests.fakes.paid_session import (
    JOB,
    RENTER,
    RENTER_KEY,
    STARTED_AT,
    open_ledger,
    opened,
    receipt,
    request_id,
    terms,
)

ONE = request_id(1)


class Counter:
    def __init__(self, ledger, view, *by_amount):
        self.ledger, self.view = ledger, view
        self.desk = Desk(ledger, FakeClock(), view.gate(*by_amount))

    async def open(self, job_id=JOB):
        return await self.desk.open_session(
            wire.OpenSessionRequest(job_id=job_id, renter=RENTER, renter_key=RENTER_KEY)
        )

    async def ask(self, job_id=JOB, tokens=300):
        return await self.desk.authorise(
            wire.AuthoriseRequest(
                job_id=job_id, request_id=ONE, max_tokens=tokens, sealed_prompt=b"sealed"
            )
        )

    async def make(self, first, count, job_id=JOB):
        await self.desk.produced(
            wire.ProducedRequest(
                job_id=job_id,
                request_id=ONE,
                first_token=first,
                token_ids=tuple(range(first, first + count)),
            )
        )


@pytest.fixture
async def counter(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(CursorMoved(90, "0x90", 50), opened(block=95), CursorMoved(100, "0x1", 50))
    yield Counter(ledger, View())
    await ledger.close()


async def other(counter, **changes):
    """Session 8 with other terms, confirmed."""
    first = opened(job_id=8, block=95)
    changed = msgspec.structs.replace(first.terms, **changes)
    await counter.ledger.record(msgspec.structs.replace(first, terms=changed))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"host": RENTER}, "is with host"),
        ({"asset": "0x" + "33" * 20}, "not accepted here"),
        ({"proof_interval": 1001}, "proof interval 1001; this host takes at most 1000 tokens"),
    ],
)
async def test_sessions_with_terms_we_do_not_serve_are_refused_at_once(counter, changes, text):
    await other(counter, **changes)
    with pytest.raises(PaymentRequired, match=text):
        await counter.open(8)


async def test_a_price_below_what_was_asked_is_refused_and_read_once(counter):
    counter.view.listed = terms().price_per_token + 1
    with pytest.raises(PaymentRequired, match="was asked when it was opened"):
        await counter.open()
    counter.view.listed = terms().price_per_token
    await counter.open()
    await counter.open()
    assert counter.view.asked == 2


async def test_a_price_that_cannot_be_read_any_more_is_left_to_the_contract(counter):
    counter.view.listed = None
    await counter.open()


async def test_a_session_is_served_when_it_is_deep_enough_for_its_deposit(counter):
    deep = Counter(counter.ledger, counter.view, (1_000, 3), (1_000_000, 8), (5_000_000, 60))
    with pytest.raises(Busy, match=r"6 of 8 confirmations .* 2 blocks are missing"):
        await deep.ask()
    counter.view.see(head=102)
    assert (await deep.ask()).max_tokens == 300


@pytest.mark.parametrize(
    ("deposit", "needed"), [(0, 2), (999, 2), (1_000, 3), (999_999, 3), (10**18, 8)]
)
def test_confirmations_follow_the_amount(deposit, needed):
    assert confirmations_for(deposit, [(1_000_000, 8), (1_000, 3), (0, 1)], least=2) == needed


async def test_new_requests_wait_while_the_marketplace_is_paused(counter):
    counter.view.see(is_paused=True)
    with pytest.raises(Busy, match="marketplace is paused"):
        await counter.ask()
    counter.view.see(is_paused=False)
    await counter.ask()


async def test_a_pause_in_mid_answer_stops_it_with_the_next_batch(counter):
    await counter.ask()
    await counter.make(0, 10)
    counter.view.see(is_paused=True)
    with pytest.raises(Busy, match="can be claimed"):
        await counter.make(10, 10)
    assert counter.ledger.session(JOB).produced == 10


async def test_a_new_deposit_waits_while_endpoints_disagree_and_a_running_one_does_not(counter):
    await counter.ask()
    await counter.make(0, 10)
    await other(counter)
    counter.view.see(disagreement="a tells 0x1, b tells 0x2")
    await counter.ask()
    with pytest.raises(Busy, match="not certain"):
        await counter.ask(8)


async def test_a_model_that_lost_its_approval_is_not_served(counter):
    counter.view.see(unapproved=(terms().model_id,))
    with pytest.raises(PaymentRequired, match="not approved"):
        await counter.ask()


async def test_a_session_at_its_end_takes_no_new_request(counter):
    counter.view.see(time=STARTED_AT + terms().max_duration_seconds)
    with pytest.raises(PaymentRequired, match="at its end"):
        await counter.ask()


ENDED = ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 0, 1_000_000, 99)
TIMED_OUT = ContractReceiveSessionEnded(JOB, Phase.TIMED_OUT, 0, 1_000_000, 99)
CLAIMED = ContractReceiveProofAccepted(JOB, 500, b"\xee" * 32, STARTED_AT, 99)


@pytest.mark.parametrize(
    ("news", "reason"),
    [
        (ENDED, "is completed"),
        (TIMED_OUT, "is timed_out"),
        (CLAIMED, "journal does not know"),
        (RewoundTo(90, "0x90"), "is vanished"),
    ],
)
async def test_what_ends_a_session_on_chain_stops_its_answer_with_the_next_batch(
    counter, news, reason
):
    await counter.ask()
    await counter.make(0, 10)
    await counter.ledger.record(news)
    with pytest.raises(PaymentRequired, match=reason):
        await counter.make(10, 10)
    assert counter.ledger.session(JOB).produced == 10


async def test_an_answer_cut_off_because_the_session_runs_out_is_told_so(counter):
    await counter.ask()
    await counter.make(0, 10)
    await counter.desk.close_running_out(STARTED_AT + terms().max_duration_seconds)
    with pytest.raises(PaymentRequired, match="is closing"):
        await counter.make(10, 10)


async def test_a_deposit_that_is_used_up_ends_the_answer(counter):
    granted = await counter.ask(tokens=1_000_000)
    assert granted.max_tokens == 10_000
    with pytest.raises(PaymentRequired, match="over its 10000 tokens"):
        await counter.make(0, 10_001)


async def test_a_receipt_from_after_a_restored_journal_settles_the_session(counter):
    """The renter has 300 tokens; the backup that was restored knows 120 of them."""
    await counter.ask()
    await counter.make(0, 120)
    await counter.desk.receipt(receipt(list(range(120))))
    for _ in range(2):
        with pytest.raises(PaymentRequired, match="knows 120: its journal was restored"):
            await counter.desk.receipt(receipt(list(range(300))))
    session = counter.ledger.session(JOB)
    assert (session.phase, session.acknowledged) == (Phase.CLOSING, 120)


async def test_a_session_nobody_told_us_of_is_looked_for(counter, monkeypatch):
    monkeypatch.setattr(desk_module, "CONFIRMATION_SECONDS", 0.01)
    with pytest.raises(PaymentRequired, match="not confirmed"):
        await counter.open(9)
    assert counter.view.looked_for == [9]


async def test_an_archived_session_is_called_over_at_once(counter):
    await counter.ledger.record(ENDED, CursorMoved(200, "0x2", 150))
    await counter.ledger.checkpoint()
    with pytest.raises(PaymentRequired, match="is completed"):
        await counter.open()
    assert counter.view.looked_for == []


async def test_a_held_journal_serves_nobody_until_it_is_let_go(counter):
    await counter.open()
    counter.ledger.held = "the repository holds another journal's backups"
    for refused in (counter.open, counter.ask):
        with pytest.raises(Busy, match="waits for its operator to restore") as told:
            await refused()
        assert "repository" not in told.value.message
    counter.ledger.held = ""
    await counter.ask()
