"""Confirmed events become changes together with the cursor, in whatever batch they come."""

from dataclasses import dataclass, field

import pytest

from nodeapp.chain.ledger import Ledger
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
            start_time=chosen.started_at,
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
        return LogPosition(number, f"0x{self.blocks.branch}{number}", "0x01", 0)

    def create(self, number, job_id=JOB):
        self.events.all.append(
            SessionCreated(self.at(number), job_id, RENTER, HOST, terms().model_id, 1_000_000)
        )

    def complete(self, number, job_id=JOB, status=SessionStatus.COMPLETED):
        self.contracts.status = status
        self.events.all.append(SessionCompleted(self.at(number), job_id, RENTER, 0, 0, 0))


@pytest.fixture
async def chain(tmp_path):
    ledger = await Ledger.open(tmp_path / "j.db", owner=HOST, marker=tmp_path / "marker")
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


async def test_each_block_is_asked_for_once(chain):
    await chain.watcher.step()
    chain.blocks.head = 14
    await chain.watcher.step()
    chain.restart(1)
    await chain.watcher.step()
    assert chain.events.asked == [(0, 10), (11, 14)]


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


async def test_a_chain_that_lost_our_block_stops_the_process(chain):
    await chain.watcher.step()
    chain.blocks.branch, chain.blocks.head = "b", 12
    with pytest.raises(Corrupt, match="block 10 changed"):
        await chain.watcher.step()
    assert chain.ledger.cursor.block_hash == "0xa10"


async def test_a_chain_that_does_not_answer_moves_nothing(chain):
    chain.blocks.is_down = True
    with pytest.raises(Unavailable):
        await chain.watcher.step()
    assert chain.ledger.cursor is None


async def test_a_chain_younger_than_the_confirmations_is_waited_for(chain):
    watcher = chain.restart(20)
    assert not await watcher.step()
