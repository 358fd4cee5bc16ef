"""Whatever a session owes the chain is carried out, also after failures and restarts."""

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pytest

from nodeapp.chain import runner as runner_module
from nodeapp.chain.checkpoints import job_of
from nodeapp.chain.ledger import RewoundTo
from nodeapp.chain.queue import TransactionQueue
from nodeapp.chain.runner import Runner, RunnerSettings
from nodeapp.chain.sealing import Sealer
from nodeapp.core.session import (
    ContractReceiveProofAccepted,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    SessionClosing,
    TokensProduced,
)
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
    new_session,
    open_ledger,
    opened,
    request_id,
    running_hash,
)
from tests.fakes.sealing import FakeContracts, FakeProver, FakeStorage

ADDRESS = "0x" + "11" * 20
DEPLOYMENT = Deployment(CHAIN_ID, ADDRESS, ADDRESS, MARKET, ADDRESS, ADDRESS, ADDRESS, ADDRESS)
IDS = tuple(range(250))
SETTINGS = RunnerSettings(1000, 30)


class Money:
    """The runner over real ledger, queue and sealer; only the far ends are fakes."""

    def __init__(self, ledger, settings):
        self.ledger, self.chain = ledger, FakeChain()
        self.contracts, self.prover = FakeContracts(), FakeProver()
        self.settings = settings
        self.start()

    def start(self):
        wallet = new_wallet()
        self.runner = Runner(
            ledger=self.ledger,
            queue=TransactionQueue(
                self.ledger, self.chain, wallet, confirmations=1, metrics=Metrics("chain")
            ),
            sealer=Sealer(self.prover, FakeStorage(), wallet, self.contracts),
            calls=Calls(DEPLOYMENT),
            settings=self.settings,
        )

    @property
    def session(self):
        return self.ledger.session(JOB)

    @asynccontextmanager
    async def running(self, seconds=1):
        """The runner is asked on every change, as the process does it."""

        async def on_changes(tasks):
            while True:
                await self.ledger.wait_for_change()
                self.runner.consider(STARTED_AT + seconds, tasks)

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(on_changes(tasks))
            self.runner.consider(STARTED_AT + seconds, tasks)
            yield
            watching.cancel()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await self.ledger.wait_for_change()

    async def confirm_claim(self):
        claim = self.session.claim
        await self.ledger.record(
            ContractReceiveProofAccepted(JOB, claim.tokens, claim.proof_hash, STARTED_AT + 1)
        )


@pytest.fixture
async def money(tmp_path):
    ledger = await open_ledger(tmp_path)
    yield Money(ledger, SETTINGS)
    await ledger.close()


async def finished_session(money):
    await money.ledger.record(
        opened(),
        RenterAuthenticated(JOB, RENTER_KEY),
        RequestAuthorised(JOB, request_id(1), 500, b"sealed"),
        TokensProduced(JOB, request_id(1), IDS),
        RenterSentReceipt(JOB, 250, running_hash(IDS), b"r" * 65),
        RequestEnded(JOB, request_id(1), "stop"),
        SessionClosing(JOB, "renter"),
    )


async def test_a_closed_session_is_claimed_and_completed(money):
    await finished_session(money)
    async with money.running(seconds=100):
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
        await money.confirm_claim()
        await money.until(lambda: f"complete/{JOB}" in money.ledger.mined)
    assert money.chain.effects == ["submitProofOfWork", "completeSessionJob"]
    assert money.session.claimed == 250


async def test_a_session_that_cannot_be_completed_is_timed_out_when_it_may_be(money):
    await finished_session(money)
    money.chain.refuses_calls = "completeSessionJob"
    async with money.running(seconds=400):
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
        await money.confirm_claim()
        await money.until(lambda: f"timeout/{JOB}" in money.ledger.mined)
    assert money.chain.effects == ["submitProofOfWork", "triggerSessionTimeout"]


async def test_a_session_without_a_claim_is_ended_by_no_transaction_of_the_host(money):
    await money.ledger.record(opened(interval=1000))
    await money.ledger.record(
        RequestAuthorised(JOB, request_id(1), 500, b"sealed"),
        TokensProduced(JOB, request_id(1), IDS),
        RenterSentReceipt(JOB, 250, running_hash(IDS), b"r" * 65),
        RequestEnded(JOB, request_id(1), "stop"),
        SessionClosing(JOB, "idle"),
        opened(job_id=8, interval=100),
    )
    async with money.running(seconds=10_000):
        # Another session gets its turn meanwhile, so the runner has looked at both.
        await money.ledger.record(
            RenterAuthenticated(8, RENTER_KEY),
            RequestAuthorised(8, request_id(2), 500, b"sealed"),
            TokensProduced(8, request_id(2), IDS),
            RenterSentReceipt(8, 250, running_hash(IDS, 8), b"r" * 65),
            RequestEnded(8, request_id(2), "stop"),
            SessionClosing(8, "renter"),
        )
        await money.until(lambda: "claim/8/0" in money.ledger.mined)
    assert money.chain.effects == ["submitProofOfWork"]
    assert not [key for key in money.ledger.mined if str(JOB) in key]


async def test_what_a_reorg_took_out_is_done_again(money):
    await finished_session(money)
    async with money.running(seconds=100):
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
        block = money.ledger.mined[f"claim/{JOB}/0"].block_number
        await money.confirm_claim()
        await money.until(lambda: f"complete/{JOB}" in money.ledger.mined)
        await money.ledger.record(RewoundTo(block - 1, "0x"))
        assert f"claim/{JOB}/0" not in money.ledger.mined
        # The transactions are still on the fake chain: their receipts are read once more.
        await money.until(lambda: f"complete/{JOB}" in money.ledger.mined)
    assert money.chain.effects == ["submitProofOfWork", "completeSessionJob"]


async def test_the_dispute_window_is_waited_for(money):
    await finished_session(money)
    async with money.running(seconds=10):
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
        await money.confirm_claim()
    assert money.chain.effects == ["submitProofOfWork"]


async def test_a_failed_step_is_tried_again_without_a_new_block(money, monkeypatch):
    monkeypatch.setattr(runner_module, "FIRST_RETRY_SECONDS", 0.02)
    await finished_session(money)
    money.prover.is_down = True
    async with money.running():
        await money.until(lambda: money.session.claim is not None)
        money.prover.is_down = False
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
    assert money.chain.effects == ["submitProofOfWork"]


async def test_a_refused_claim_is_sent_again(money, monkeypatch):
    monkeypatch.setattr(runner_module, "LONGEST_RETRY_SECONDS", 0.02)
    await finished_session(money)
    money.chain.refuse = "insufficient funds"
    async with money.running():
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
    assert money.chain.effects == ["submitProofOfWork"]


async def test_a_model_that_may_claim_nothing_is_tried_again_and_ends_nothing(money, monkeypatch):
    """A registry that tells 0 must not stop the claims of all other models."""
    monkeypatch.setattr(runner_module, "FIRST_RETRY_SECONDS", 0.01)
    told = [0, 0, 2000]

    async def model_rate_limit(model_id):
        return told.pop(0)

    monkeypatch.setattr(money.contracts, "model_rate_limit", model_rate_limit)
    await finished_session(money)
    async with money.running(seconds=100):
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
    assert (told, money.chain.effects) == ([], ["submitProofOfWork"])


async def test_after_a_restart_a_mined_claim_is_not_sent_again(money):
    await finished_session(money)
    async with money.running():
        await money.until(lambda: f"claim/{JOB}/0" in money.ledger.mined)
    money.start()
    async with money.running():
        await money.ledger.record(opened(job_id=8))
    assert money.chain.effects == ["submitProofOfWork"]


def test_another_session_under_a_known_job_id_does_not_find_its_work_done():
    first = new_session()
    second = msgspec.structs.replace(first, first_interval=2)
    assert [runner_module._key("complete", one) for one in (first, second)] == [
        f"complete/{JOB}",
        f"complete/{JOB}/2",
    ]
    assert {job_of(runner_module._key("timeout", one)) for one in (first, second)} == {JOB}
