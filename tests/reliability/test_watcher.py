"""Confirmed events become changes together with the cursor, in whatever batch they come."""

from dataclasses import dataclass, field, replace

import pytest

from nodeapp.chain.watcher import Watcher
from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.core.session import ClaimPrepared, Phase, RenterSentReceipt, RequestAuthorised
from nodeapp.core.session import TokensProduced as Made
from nodeapp.core.units import Tokens
from nodeapp.evm.contracts import SessionJob, SessionStatus
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.events import LogPosition, ProofSubmitted, SessionCompleted, SessionCreated
from tests.fakes.chain import FakeBlocks, FakeEvents
from tests.fakes.paid_session import (
    CHAIN_ID,
    HOST,
    JOB,
    MARKET,
    RENTER,
    claim_of,
    open_ledger,
    request_id,
    running_hash,
    sealed,
    terms,
)

ADDRESS = "0x" + "11" * 20
DEPLOYMENT = Deployment(CHAIN_ID, ADDRESS, ADDRESS, MARKET, ADDRESS, ADDRESS, ADDRESS, ADDRESS)


@dataclass
class FakeContracts:
    """Only what the watcher reads; every session is `terms()` with this status."""

    provider: FakeBlocks = field(default_factory=FakeBlocks)
    deployment: Deployment = DEPLOYMENT
    status: SessionStatus = SessionStatus.ACTIVE
    started_at: int = terms().started_at

    async def is_paused(self, block):
        return False

    async def session(self, job_id, block):
        chosen = terms(job_id=job_id)
        ended = self.status is not SessionStatus.ACTIVE
        return SessionJob(
            job_id=chosen.job_id,
            depositor=chosen.renter,
            host=chosen.host,
            payment_asset=chosen.asset,
            deposit=chosen.deposit,
            price_per_token=chosen.price_per_token,
            tokens_used=Tokens(0),
            max_duration_seconds=chosen.max_duration_seconds,
            start_time=self.started_at,
            last_proof_time=chosen.started_at,
            proof_interval=chosen.proof_interval,
            proof_timeout_seconds=chosen.proof_timeout_seconds,
            status=self.status,
            host_share=900 if ended else 0,
            refund=100 if ended else 0,
            conversation_cid="",
            last_proof_hash=bytes(32),
            last_proof_cid="",
            model_id=chosen.model_id,
        )


class Chain:
    def __init__(self, ledger, confirmations):
        self.ledger, self.contracts, self.events = ledger, FakeContracts(), FakeEvents()
        self.watcher = self.restart(confirmations)

    def restart(self, confirmations):
        self.watcher = Watcher(self.ledger, self.contracts, HOST, confirmations=confirmations)
        self.watcher._events = self.events
        return self.watcher

    @property
    def blocks(self):
        return self.contracts.provider

    def at(self, number):
        return LogPosition(number, self.blocks.hash_of(number), "0x01", 0)

    def create(self, number, job_id=JOB):
        self.events.all.append(
            SessionCreated(self.at(number), job_id, RENTER, HOST, terms().model_id, 1_000_000)
        )

    def complete(self, number, job_id=JOB, status=SessionStatus.COMPLETED):
        self.contracts.status = status
        self.events.all.append(SessionCompleted(self.at(number), job_id, RENTER, 0, 0, 0))


@pytest.fixture
async def chain(tmp_path):
    ledger = await open_ledger(tmp_path)
    yield Chain(ledger, confirmations=1)
    await ledger.close()


async def test_a_confirmed_session_is_known_with_the_terms_of_the_contract(chain):
    chain.create(4)
    assert await chain.watcher.step()
    assert chain.ledger.session(JOB).terms == terms()
    assert chain.ledger.cursor.block_number == chain.watcher.now.number == 10
    assert not await chain.watcher.step()


async def test_only_confirmed_blocks_are_taken_in(chain):
    watcher = chain.restart(3)
    chain.create(9)
    assert await watcher.step()
    assert (chain.ledger.cursor.block_number, chain.ledger.sessions) == (8, {})
    chain.blocks.head = 11
    assert await watcher.step()
    assert JOB in chain.ledger.sessions


async def test_blocks_that_may_change_are_read_again_and_final_ones_are_not(chain):
    await chain.watcher.step()
    chain.blocks.head = 14
    await chain.watcher.step()
    chain.restart(1)
    await chain.watcher.step()
    chain.blocks.head = 90
    await chain.watcher.step()
    assert chain.events.asked == [(0, 10), (1, 14), (1, 26), (1, 90)]


async def test_a_log_left_out_and_one_sent_twice_change_nothing_in_the_end(chain):
    chain.create(9)
    left_out = chain.events.all.pop()
    await chain.watcher.step()
    assert chain.ledger.sessions == {}
    chain.events.all += [left_out, left_out]
    chain.blocks.head = 11
    await chain.watcher.step()
    session = chain.ledger.session(JOB)
    assert session.opened_in == 9
    chain.blocks.head = 12
    await chain.watcher.step()
    assert chain.ledger.session(JOB) is session, "what is known is not written again"


@pytest.mark.parametrize(
    ("status", "phase"),
    [(SessionStatus.COMPLETED, Phase.COMPLETED), (SessionStatus.TIMED_OUT, Phase.TIMED_OUT)],
)
async def test_a_session_opened_and_ended_while_we_were_away_is_ended(chain, status, phase):
    chain.create(4)
    chain.complete(6, status=status)
    await chain.watcher.step()
    session = chain.ledger.session(JOB)
    assert (session.phase, session.host_earnings, session.refund) == (phase, 900, 100)


async def test_a_proof_of_ours_frees_its_claim_at_block_time(chain):
    chain.create(4)
    await chain.watcher.step()
    ids = tuple(range(120))
    await chain.ledger.record(
        RequestAuthorised(JOB, request_id(1), 500, b"sealed"),
        Made(JOB, request_id(1), ids),
        RenterSentReceipt(JOB, 120, running_hash(ids), b"s"),
    )
    claim = claim_of(chain.ledger.session(JOB), 110)
    await chain.ledger.record(ClaimPrepared(JOB, claim), sealed(claim))
    chain.blocks.head = 12
    chain.events.all.append(
        ProofSubmitted(chain.at(12), JOB, HOST, 110, sealed(claim).proof_hash, "b", "b")
    )
    await chain.watcher.step()
    session = chain.ledger.session(JOB)
    assert (session.claim, session.claimed, session.last_proof_at) == (None, 110, 1012)


async def test_events_of_sessions_from_before_our_journal_are_passed_over(chain):
    chain.complete(5, job_id=3)
    await chain.watcher.step()
    assert chain.ledger.sessions == {}


async def test_a_reorg_takes_back_what_is_above_the_fork(chain):
    chain.create(4)
    await chain.watcher.step()
    chain.create(11, job_id=8)
    chain.blocks.head = 11
    await chain.watcher.step()
    chain.blocks.fork(from_block=11, branch="b")
    chain.events.all.pop()
    chain.create(12, job_id=9)
    chain.blocks.head = 12
    assert await chain.watcher.step()
    phases = {job_id: one.phase for job_id, one in chain.ledger.sessions.items()}
    assert phases == {JOB: Phase.ACTIVE, 8: Phase.VANISHED, 9: Phase.ACTIVE}
    assert chain.ledger.cursor.block_hash == "0xb12"


async def test_a_reorg_that_leaves_the_height_as_it_was_is_seen(chain):
    chain.create(10)
    await chain.watcher.step()
    chain.events.all.clear()
    chain.blocks.fork(from_block=10, branch="b")
    assert await chain.watcher.step()
    assert chain.ledger.session(JOB).phase is Phase.VANISHED


async def test_an_endpoint_that_is_behind_takes_nothing_back(chain):
    await chain.watcher.step()
    chain.blocks.head = 14
    await chain.watcher.step()
    chain.blocks.head = 12
    assert not await chain.watcher.step()
    assert chain.ledger.cursor.block_number == 14


async def test_a_shorter_chain_with_other_blocks_is_a_reorg(chain):
    await chain.watcher.step()
    chain.blocks.head = 14
    chain.create(13)
    await chain.watcher.step()
    chain.events.all.clear()
    chain.blocks.fork(from_block=9, branch="b")
    chain.blocks.head = 12
    assert await chain.watcher.step()
    assert chain.ledger.session(JOB).phase is Phase.VANISHED
    assert chain.ledger.cursor.block_hash == "0xb12"


async def test_a_chain_that_lost_a_final_block_stops_the_process(chain):
    chain.blocks.head = 100
    await chain.watcher.step()
    chain.blocks.fork(from_block=36, branch="b")
    chain.blocks.head = 101
    with pytest.raises(Corrupt, match=r"block 36 is not 0xa36 .* chain.reorg_window_blocks"):
        await chain.watcher.step()
    assert chain.ledger.cursor.block_hash == "0xa100"


async def test_the_deepest_reorg_of_the_window_is_followed(chain):
    chain.blocks.head = 100
    await chain.watcher.step()
    chain.blocks.fork(from_block=37, branch="b")
    chain.blocks.head = 101
    assert await chain.watcher.step()
    assert chain.ledger.cursor.block_hash == "0xb101"


async def test_logs_that_an_endpoint_never_shows_are_found_by_the_audit(chain):
    chain.create(4)
    await chain.watcher.step()
    chain.complete(5)
    hidden = chain.events.all.pop()
    chain.blocks.head = 90
    await chain.watcher.step()
    assert chain.ledger.session(JOB).ended is None
    chain.events.all.append(hidden)
    chain.blocks.head = 91
    await chain.watcher.step()
    assert chain.ledger.session(JOB).phase is Phase.COMPLETED


async def test_a_session_without_a_creation_log_is_found_by_its_number(chain):
    chain.blocks.head = 90
    chain.contracts.started_at = 1047
    await chain.watcher.step()
    await chain.watcher.look_for(JOB)
    session = chain.ledger.session(JOB)
    assert (session.opened_in, session.terms.started_at) == (47, 1047)
    await chain.watcher.look_for(JOB)
    assert chain.ledger.session(JOB) is session


async def test_a_session_that_is_over_is_not_served_because_its_logs_were_missing(chain):
    chain.blocks.head = 90
    chain.contracts.started_at = 1047
    chain.contracts.status = SessionStatus.COMPLETED
    await chain.watcher.step()
    await chain.watcher.look_for(JOB)
    assert chain.ledger.sessions == {}


async def test_what_was_looked_for_on_a_branch_that_is_gone_is_not_opened(chain):
    chain.blocks.head = 90
    chain.contracts.started_at = 1047
    await chain.watcher.step()
    chain.blocks.head = 91
    await chain.watcher.step()
    plain = chain.contracts.session

    async def session(job_id, block):
        job = await plain(job_id, block)
        chain.blocks.fork(from_block=91, branch="b")
        chain.blocks.head = 92
        await chain.watcher.step()
        return job

    chain.contracts.session = session
    await chain.watcher.look_for(JOB)
    assert (chain.ledger.rewinds, chain.ledger.sessions) == (1, {})


async def test_claims_of_a_session_found_by_its_number_are_known_at_once(chain):
    chain.blocks.head = 90
    chain.contracts.started_at = 1047
    chain.events.all.append(
        ProofSubmitted(chain.at(60), JOB, HOST, Tokens(120), b"\x01" * 32, "b", "b")
    )
    plain = chain.contracts.session

    async def session(job_id, block):
        return replace(await plain(job_id, block), tokens_used=Tokens(120))

    chain.contracts.session = session
    await chain.watcher.step()
    await chain.watcher.look_for(JOB)
    session_found = chain.ledger.session(JOB)
    assert session_found.claimed == 120
    assert not session_found.is_open, "what an unknown claim covers cannot be told"


async def test_a_chain_that_does_not_answer_moves_nothing(chain):
    chain.blocks.is_down = True
    with pytest.raises(Unavailable):
        await chain.watcher.step()
    assert chain.ledger.cursor is None


async def test_a_chain_younger_than_the_confirmations_is_waited_for(chain):
    watcher = chain.restart(20)
    assert not await watcher.step()


async def test_terms_that_cannot_be_stored_are_passed_over_and_others_go_on(chain):
    """19 native coins in wei do not fit into 64 bits; anybody may put them into a session."""
    absurd = 19 * 10**18
    plain = chain.contracts.session

    async def session(job_id, block):
        job = await plain(job_id, block)
        return replace(job, deposit=absurd) if job_id == JOB else job

    chain.contracts.session = session
    chain.create(4)
    chain.create(5, job_id=8)
    chain.complete(6)
    await chain.watcher.step()
    assert sorted(chain.ledger.sessions) == [8]
    chain.blocks.head += 1
    chain.complete(11)
    await chain.watcher.step()
    assert sorted(chain.ledger.sessions) == [8]
    assert chain.ledger.cursor.block_number == 11
    chain.contracts.session = plain
    chain.blocks.fork(from_block=3, branch="b")
    chain.blocks.head += 1
    await chain.watcher.step()
    assert sorted(chain.ledger.sessions) == [JOB, 8], "after a reorg the number may be another's"
