"""What the marketplace would refuse, this node does not send; docs/marketplace-rules.md lists all."""

import asyncio

import msgspec
import pytest

from nodeapp.chain import runner as runner_module
from nodeapp.chain.queue import TransactionQueue
from nodeapp.chain.runner import Runner, RunnerSettings
from nodeapp.chain.sealing import Sealer
from nodeapp.core.claims import MIN_CLAIM, claimable_from
from nodeapp.core.session import (
    ClaimPrepared,
    ClaimStage,
    ContractReceiveProofAccepted,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import (
    CompleteSession,
    PrepareClaim,
    SubmitClaim,
    TriggerTimeout,
    WaitUntil,
    next_step,
)
from nodeapp.core.transitions import apply
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.calls import Calls
from nodeapp.evm.deployment import Deployment
from nodeapp.service.metrics import Metrics
from tests.fakes.mempool import FakeChain
from tests.fakes.paid_session import (
    CHAIN_ID,
    JOB,
    MARKET,
    RENTER_KEY,
    STARTED_AT,
    claim_of,
    new_session,
    open_ledger,
    opened,
    request_id,
    running_hash,
    sealed,
)
from tests.fakes.sealing import FakeContracts, FakeProver, FakeStorage

ADDRESS = "0x" + "11" * 20
DEPLOYMENT = Deployment(CHAIN_ID, ADDRESS, ADDRESS, MARKET, ADDRESS, ADDRESS, ADDRESS, ADDRESS)
WINDOW = 30


def answer(ids):
    """Everything of one answer of these tokens, acknowledged to the end."""
    return (
        RenterAuthenticated(JOB, RENTER_KEY),
        RequestAuthorised(JOB, request_id(1), len(ids), b"sealed"),
        TokensProduced(JOB, request_id(1), ids),
        RenterSentReceipt(JOB, len(ids), running_hash(ids), b"r" * 65),
        RequestEnded(JOB, request_id(1), "stop"),
    )


def after(changes, **terms):
    session = new_session(**terms)
    for change in changes:
        session = apply(session, change)
    return session


def step(session, seconds, window=WINDOW, interval=1000):
    return next_step(
        session,
        STARTED_AT + seconds,
        interval_tokens=interval,
        dispute_window_seconds=window,
    )


def test_the_rate_limit_is_counted_as_the_contract_counts_it():
    # tokens <= elapsed * limit, in whole seconds.
    assert claimable_from(last_proof_at=100, tokens=2000, tokens_per_second=2000) == 101
    assert claimable_from(last_proof_at=100, tokens=2001, tokens_per_second=2000) == 102
    assert claimable_from(last_proof_at=100, tokens=1, tokens_per_second=2000) == 101


async def test_a_claim_waits_until_the_models_rate_limit_lets_it_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "LONGEST_RETRY_SECONDS", 0.02)
    ledger = await open_ledger(tmp_path)
    chain, contracts, wallet = FakeChain(), FakeContracts(rate_limit=10), new_wallet()
    runner = Runner(
        ledger=ledger,
        queue=TransactionQueue(ledger, chain, wallet, confirmations=1, metrics=Metrics("chain")),
        sealer=Sealer(FakeProver(), FakeStorage(), wallet, contracts),
        calls=Calls(DEPLOYMENT),
        settings=RunnerSettings(1000, WINDOW),
    )
    await ledger.record(opened(), *answer(tuple(range(250))), SessionClosing(JOB, "renter"))
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            # 250 tokens at 10 a second: not before 25 s after the start of the session.
            runner.consider(STARTED_AT + 24, tasks)
            while runner._jobs[JOB].failures < 2:
                await asyncio.sleep(0.01)
            claim = ledger.session(JOB).claim
            assert claim is not None
            assert claim.stage is ClaimStage.SEALED
            assert chain.effects == []
            runner.consider(STARTED_AT + 25, tasks)
        assert chain.effects == ["submitProofOfWork"]
    finally:
        await ledger.close()


def test_claims_are_deltas_that_add_up_to_what_was_acknowledged():
    ids = tuple(range(700))
    session, claimed = after(answer(ids)), []
    session = apply(session, SessionClosing(JOB, "renter"))
    while isinstance(due := step(session, 1, interval=200), PrepareClaim):
        claim = claim_of(session, due.tokens)
        session = apply(apply(session, ClaimPrepared(JOB, claim)), sealed(claim))
        claimed.append((claim.first_token, claim.tokens))
        accepted = ContractReceiveProofAccepted(
            JOB, claim.tokens, session.claims[-1].proof_hash, STARTED_AT + 1
        )
        session = apply(session, accepted)
    assert sum(tokens for _, tokens in claimed) == 700
    ends = [first + tokens for first, tokens in claimed]
    assert [first for first, _ in claimed] == [0, *ends[:-1]]


def test_no_completion_is_sent_while_a_claim_is_not_mined():
    session = after((*answer(tuple(range(300))), SessionClosing(JOB, "renter")))
    claim = claim_of(session, 300)
    session = apply(apply(session, ClaimPrepared(JOB, claim)), sealed(claim))
    # Long after window and timeout: the claim still goes first.
    for seconds in (1, 100, 250, 5000):
        assert isinstance(step(session, seconds), SubmitClaim)


def test_the_dispute_window_counts_from_the_last_proof_in_block_time():
    session = after((*answer(tuple(range(300))), SessionClosing(JOB, "renter")))
    claim = claim_of(session, 300)
    for change in (
        ClaimPrepared(JOB, claim),
        sealed(claim),
        ContractReceiveProofAccepted(JOB, 300, sealed(claim).proof_hash, STARTED_AT + 100),
    ):
        session = apply(session, change)
    wait = step(session, 101)
    assert isinstance(wait, WaitUntil)
    assert wait.block_time >= STARTED_AT + 100 + WINDOW
    assert isinstance(step(session, 100 + WINDOW), WaitUntil)
    assert isinstance(step(session, 100 + WINDOW + 2), CompleteSession)


def test_a_session_that_cannot_be_completed_in_time_is_timed_out_by_its_own_host():
    session = after((*answer(tuple(range(300))), SessionClosing(JOB, "renter")))
    claim = claim_of(session, 300)
    for change in (
        ClaimPrepared(JOB, claim),
        sealed(claim),
        ContractReceiveProofAccepted(JOB, 300, sealed(claim).proof_hash, STARTED_AT),
    ):
        session = apply(session, change)
    overdue = session.terms.proof_timeout_seconds
    window = 10 * overdue
    # The contract wants block time > last proof + window: not in that very second.
    assert isinstance(step(session, overdue, window), WaitUntil)
    assert isinstance(step(session, overdue + 1, window), TriggerTimeout)


@pytest.mark.parametrize("rest", [1, MIN_CLAIM - 1])
def test_a_rest_below_the_minimum_is_given_away_and_never_padded(rest):
    session = after((*answer(tuple(range(300))), SessionClosing(JOB, "renter")))
    claim = claim_of(session, 300 - rest)
    for change in (
        ClaimPrepared(JOB, claim),
        sealed(claim),
        ContractReceiveProofAccepted(JOB, 300 - rest, sealed(claim).proof_hash, STARTED_AT + 1),
    ):
        session = apply(session, change)
    assert isinstance(step(session, 2), WaitUntil)
    assert isinstance(step(session, 2 + 2 * WINDOW), CompleteSession)


def test_a_first_claim_below_the_proof_interval_is_never_prepared():
    interval = 300
    short = after((*answer(tuple(range(299))), SessionClosing(JOB, "renter")), interval=interval)
    assert not isinstance(step(short, 1), PrepareClaim)
    full = after((*answer(tuple(range(300))), SessionClosing(JOB, "renter")), interval=interval)
    assert step(full, 1) == PrepareClaim(300)


async def test_the_same_tokens_in_another_place_have_another_hash():
    sealer = Sealer(FakeProver(), FakeStorage(), new_wallet(), FakeContracts())
    session = after(answer(tuple([7] * 300)))
    claims = [
        msgspec.structs.replace(claim_of(session, 120), salts=(b"s" * 16,), **change)
        for change in ({}, {"first_token": 120}, {"interval": 1})
    ]
    hashes = {(await sealer.seal(session, claim)).proof_hash for claim in claims}
    assert len(hashes) == len(claims)
