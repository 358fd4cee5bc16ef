"""Money questions: asked twice they are answered twice and written once."""

import asyncio

import msgspec
import pytest

from nodeapp.chain import desk as desk_module
from nodeapp.chain.desk import MAX_SEALED_PROMPT_BYTES, Desk
from nodeapp.core.errors import (
    InvalidRequest,
    NotFound,
    PaymentRequired,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from nodeapp.core.ids import JobId
from nodeapp.core.session import ContractReceiveSessionEnded, Phase
from nodeapp.security.wallet import address_of, public_key_of
from nodeapp.wire import ipc_chain as wire
from tests.fakes.clock import FakeClock
from tests.fakes.paid_session import (
    JOB,
    RENTER,
    RENTER_KEY,
    open_ledger,
    opened,
    receipt,
    request_id,
)

ONE, TWO = request_id(1), request_id(2)
OPEN = wire.OpenSessionRequest(job_id=JOB, renter=RENTER, renter_key=RENTER_KEY)
STRANGER_KEY = public_key_of(b"\x42" * 32)


class Counter:
    """A desk over a real ledger, and how many records its journal has."""

    def __init__(self, ledger, clock):
        self.ledger, self.clock = ledger, clock
        self.desk = Desk(ledger, clock)

    @property
    def written(self):
        return self.ledger._book.last_sequence

    @property
    def session(self):
        return self.ledger.session(JOB)

    async def authorise(self, request=ONE, tokens=500):
        return await self.desk.authorise(
            wire.AuthoriseRequest(
                job_id=JOB, request_id=request, max_tokens=tokens, sealed_prompt=b"sealed"
            )
        )

    async def produced(self, first, ids, request=ONE):
        await self.desk.produced(
            wire.ProducedRequest(
                job_id=JOB, request_id=request, first_token=first, token_ids=tuple(ids)
            )
        )

    async def end(self, request=ONE):
        await self.desk.end_request(wire.EndRequest(job_id=JOB, request_id=request, reason="stop"))


@pytest.fixture
async def counter(tmp_path):
    ledger = await open_ledger(tmp_path)
    await ledger.record(opened())
    made = Counter(ledger, FakeClock())
    await made.desk.open_session(OPEN)
    yield made
    await ledger.close()


async def test_opening_twice_is_written_once(counter):
    before = counter.written
    view = await counter.desk.open_session(OPEN)
    assert (view.job_id, view.affordable, view.acknowledged) == (JOB, 10_000, 0)
    assert counter.written == before


async def test_only_the_depositor_opens_its_session(counter):
    other = address_of(STRANGER_KEY)
    for renter, key in ((other, STRANGER_KEY), (RENTER, STRANGER_KEY), (other, RENTER_KEY)):
        with pytest.raises(Unauthorised, match="not paid by"):
            await counter.desk.open_session(
                wire.OpenSessionRequest(job_id=JOB, renter=renter, renter_key=key)
            )


async def test_a_session_on_its_way_to_the_chain_is_waited_for(counter):
    later = wire.OpenSessionRequest(job_id=8, renter=RENTER, renter_key=RENTER_KEY)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(counter.desk.open_session(later))
        await asyncio.sleep(0)
        assert not asking.done()
        await counter.ledger.record(opened(job_id=8))
    assert asking.result().job_id == 8


async def test_a_session_that_never_comes_is_refused(counter, monkeypatch):
    monkeypatch.setattr(desk_module, "CONFIRMATION_SECONDS", 0.05)
    with pytest.raises(PaymentRequired, match="session 9 is not confirmed"):
        await counter.desk.open_session(
            wire.OpenSessionRequest(job_id=9, renter=RENTER, renter_key=RENTER_KEY)
        )


async def test_an_ended_session_is_not_opened(counter):
    await counter.ledger.record(ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 0, 1))
    with pytest.raises(PaymentRequired, match="is completed"):
        await counter.desk.open_session(OPEN)


async def test_asking_again_with_the_same_request_takes_the_answer_up(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6, 7])
    await counter.desk.receipt(receipt([5, 6]))
    again = await counter.authorise()
    assert (again.first_token, again.acknowledged, again.delivered_ids) == (0, 2, (5, 6))
    assert again.max_tokens == 500
    await counter.produced(2, [8])
    assert counter.session.stream == (5, 6, 8)


async def test_another_request_supersedes_the_open_one(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6, 7])
    await counter.desk.receipt(receipt([5]))
    second = await counter.authorise(TWO)
    assert (second.first_token, second.delivered_ids) == (1, ())
    with pytest.raises(InvalidRequest, match="not open"):
        await counter.produced(1, [9], ONE)


async def test_no_more_is_granted_than_the_deposit_has_left(counter):
    granted = await counter.authorise(tokens=1_000_000)
    assert granted.max_tokens == 10_000


async def test_a_prompt_that_no_journal_record_holds_is_refused(counter):
    request = wire.AuthoriseRequest(
        job_id=JOB,
        request_id=ONE,
        max_tokens=5,
        sealed_prompt=bytes(MAX_SEALED_PROMPT_BYTES + 1),
    )
    with pytest.raises(TooLarge, match="prompt has"):
        await counter.desk.authorise(request)
    fits = wire.AuthoriseRequest(
        job_id=JOB, request_id=ONE, max_tokens=5, sealed_prompt=bytes(MAX_SEALED_PROMPT_BYTES)
    )
    await counter.desk.authorise(fits)


async def test_a_batch_told_twice_is_written_once(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6])
    before = counter.written
    await counter.produced(0, [5, 6])
    assert (counter.written, counter.session.stream) == (before, (5, 6))


async def test_a_batch_told_again_while_the_first_is_being_written_is_written_once(counter):
    """The reply was lost and the caller repeats itself before the disk is done."""
    await counter.authorise()
    before = counter.written
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(counter.produced(0, [5, 6]))
    assert (counter.written, counter.session.stream) == (before + 1, (5, 6))


async def test_reservations_that_cross_end_with_one_open_request(counter):
    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(counter.authorise(request_id(number)))
    assert counter.session.request.request_id == request_id(4)


@pytest.mark.parametrize(("first", "ids"), [(3, [9]), (1, [9]), (0, [5, 6, 7])])
async def test_a_batch_beside_the_stream_is_refused(counter, first, ids):
    await counter.authorise()
    await counter.produced(0, [5, 6])
    with pytest.raises(PaymentRequired, match="do not follow"):
        await counter.produced(first, ids)


async def test_a_receipt_told_twice_is_written_once(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6])
    assert (await counter.desk.receipt(receipt([5, 6]))).acknowledged == 2
    before = counter.written
    assert (await counter.desk.receipt(receipt([5, 6]))).acknowledged == 2
    assert (await counter.desk.receipt(receipt([5]))).acknowledged == 2
    assert counter.written == before


async def test_receipts_that_cross_keep_the_largest(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6, 7])
    async with asyncio.TaskGroup() as tasks:
        for ids in ([5], [5, 6, 7], [5, 6]):
            tasks.create_task(counter.desk.receipt(receipt(ids)))
    assert counter.session.acknowledged == 3


async def test_a_receipt_of_somebody_else_pays_nothing(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6])
    with pytest.raises(Unauthorised, match="expected"):
        await counter.desk.receipt(receipt([5, 6], secret=b"\x42" * 32))
    assert counter.session.acknowledged == 0


async def test_ending_twice_is_harmless_and_the_last_receipt_still_counts(counter):
    await counter.authorise()
    await counter.produced(0, [5, 6])
    await counter.end()
    await counter.end()
    assert (await counter.desk.receipt(receipt([5, 6]))).acknowledged == 2


async def test_closing_ends_the_open_request(counter):
    await counter.authorise()
    view = await counter.desk.close_session(wire.JobRequest(job_id=JOB))
    assert (view.phase, view.open_request) == ("closing", "")
    before = counter.written
    await counter.desk.close_session(wire.JobRequest(job_id=JOB))
    assert counter.written == before
    with pytest.raises(PaymentRequired):
        await counter.authorise(TWO)


async def test_only_a_session_that_nobody_uses_is_closed_for_idleness(counter):
    await counter.authorise()
    counter.clock.now += 100
    await counter.produced(0, [5])
    counter.clock.now += 119
    await counter.desk.close_idle(120)
    assert counter.session.phase is Phase.ACTIVE
    counter.clock.now += 1
    await counter.desk.close_idle(120)
    assert counter.session.phase is Phase.CLOSING
    assert counter.session.request is None


async def test_a_session_seen_after_a_restart_has_its_idle_time_anew(counter):
    fresh = Desk(counter.ledger, counter.clock)
    await fresh.close_idle(120)
    counter.clock.now += 119
    await fresh.close_idle(120)
    assert counter.session.phase is Phase.ACTIVE


async def test_an_unknown_session_is_not_found(counter):
    with pytest.raises(NotFound, match="session 99"):
        await counter.desk.view(wire.JobRequest(job_id=99))


async def test_batches_written_together_are_one_write_and_a_refused_one_stops_no_other(counter):
    other = JobId(JOB + 1)
    await counter.ledger.record(opened(job_id=other))
    await counter.desk.open_session(
        wire.OpenSessionRequest(job_id=other, renter=RENTER, renter_key=RENTER_KEY)
    )
    await counter.authorise()
    await counter.desk.authorise(
        wire.AuthoriseRequest(job_id=other, request_id=TWO, max_tokens=5, sealed_prompt=b"sealed")
    )

    def batch(first, *, too_many=False):
        ids = tuple(range(9 if too_many else 2))
        return wire.ProducedBatch(
            (
                wire.ProducedRequest(JOB, ONE, first, (1, 2)),
                wire.ProducedRequest(other, TWO, first, ids),
            )
        )

    reply = await counter.desk.produced_together(batch(0))
    assert reply.errors == (None, None)
    before = counter.written
    assert (await counter.desk.produced_together(batch(0))).errors == (None, None)
    assert counter.written == before
    reply = await counter.desk.produced_together(batch(2, too_many=True))
    assert reply.errors[0] is None
    assert reply.errors[1].code == PaymentRequired.code
    assert counter.session.produced == 4
    assert counter.ledger.session(other).produced == 2


async def test_receipts_taken_together_are_one_write_and_a_false_one_stops_no_other(counter):
    other = JobId(JOB + 1)
    await counter.ledger.record(opened(job_id=other))
    await counter.authorise()
    await counter.produced(0, [5, 6, 7])

    def batch(*receipts):
        return wire.ReceiptBatch(receipts)

    stranger = msgspec.structs.replace(receipt([5]), job_id=other)
    reply = await counter.desk.receipts(batch(receipt([5]), stranger))
    assert reply.acknowledged == (1, 0)
    assert reply.errors[0] is None
    assert reply.errors[1].code == Unauthorised.code
    unknown = msgspec.structs.replace(receipt([5]), job_id=JobId(99))
    reply = await counter.desk.receipts(batch(receipt([5, 6]), unknown))
    assert (reply.acknowledged, reply.errors[0]) == ((2, 0), None)
    assert reply.errors[1].code == NotFound.code
    before = counter.written
    assert (await counter.desk.receipts(batch(receipt([5])))).acknowledged == (2,)
    assert counter.written == before
    assert (await counter.desk.receipts(batch(receipt([5, 6, 7])))).errors == (None,)
    assert counter.session.acknowledged == 3


async def three_sessions(counter):
    """Each with a request under way; and the writes of the journal from now on."""
    jobs = [JOB, JobId(JOB + 1), JobId(JOB + 2)]
    await counter.authorise()
    for job_id in jobs[1:]:
        await counter.ledger.record(opened(job_id=job_id))
        await counter.desk.open_session(
            wire.OpenSessionRequest(job_id=job_id, renter=RENTER, renter_key=RENTER_KEY)
        )
        await counter.desk.authorise(
            wire.AuthoriseRequest(
                job_id=job_id, request_id=ONE, max_tokens=500, sealed_prompt=b"sealed"
            )
        )
    book, writes = counter.ledger._book, []
    append = book.append

    async def counted(changes):
        writes.append(len(changes))
        return await append(changes)

    book.append = counted
    return jobs, writes


async def test_a_refused_batch_costs_the_others_no_write_of_their_own(counter):
    jobs, writes = await three_sessions(counter)
    requests = [wire.ProducedRequest(job_id, ONE, 0, (1, 2)) for job_id in jobs]
    requests[1] = wire.ProducedRequest(jobs[1], TWO, 0, (1, 2))
    reply = await counter.desk.produced_together(wire.ProducedBatch(tuple(requests)))
    assert [error and error.code for error in reply.errors] == [None, InvalidRequest.code, None]
    assert [counter.ledger.session(job_id).produced for job_id in jobs] == [2, 0, 2]
    assert writes == [2]


async def test_a_false_receipt_costs_the_others_no_write_of_their_own(counter):
    jobs, writes = await three_sessions(counter)
    for job_id in jobs:
        await counter.desk.produced(wire.ProducedRequest(job_id, ONE, 0, (5, 6)))
    writes.clear()
    digests = [receipt([5, 6], job_id=job_id) for job_id in jobs]
    digests[1] = msgspec.structs.replace(digests[0], job_id=jobs[1])
    reply = await counter.desk.receipts(wire.ReceiptBatch(tuple(digests)))
    assert [error and error.code for error in reply.errors] == [None, Unauthorised.code, None]
    assert reply.acknowledged == (2, 0, 2)
    assert writes == [2]


async def test_one_session_twice_in_a_batch_is_journalled_once(counter):
    await counter.authorise()
    twice = wire.ProducedBatch((wire.ProducedRequest(JOB, ONE, 0, (1, 2)),) * 2)
    assert (await counter.desk.produced_together(twice)).errors == (None, None)
    assert counter.session.produced == 2


async def test_what_cannot_be_written_together_is_told_as_such(counter):
    jobs, _writes = await three_sessions(counter)

    async def full(changes):
        raise Unavailable("the disk is full")

    counter.ledger._book.append = full
    requests = tuple(wire.ProducedRequest(job_id, ONE, 0, (1, 2)) for job_id in jobs)
    with pytest.raises(Unavailable, match="disk"):
        await counter.desk.produced_together(wire.ProducedBatch(requests))
    assert [counter.ledger.session(job_id).produced for job_id in jobs] == [0, 0, 0]
