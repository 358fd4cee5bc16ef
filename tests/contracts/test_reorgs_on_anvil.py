"""The watcher follows a real chain back: blocks cut off by anvil, deposits mined again or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeapp.chain.ledger import Entry, Ledger
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.chain.watcher import Watcher
from nodeapp.core.errors import Corrupt
from nodeapp.core.ids import JobId, RequestId
from nodeapp.core.session import (
    Claim,
    ClaimPrepared,
    Phase,
    RenterSentReceipt,
    RequestAuthorised,
    TokensProduced,
)
from nodeapp.core.units import Tokens
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.devnet.main import Devnet
from nodeapp.devnet.provision import HostOffer, provision_host, provision_renter
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import UNLIMITED, Calls, SessionTerms, approve
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.events import SessionCreated
from nodeapp.evm.transactions import Transactions
from nodeapp.service.metrics import Metrics
from tests.contracts.world import MODEL

DEPOSIT = 2_000_000


@dataclass
class Market:
    devnet: Devnet
    contracts: Contracts
    calls: Calls
    transactions: Transactions
    host: Wallet
    renter: Wallet
    ledger: Ledger
    watcher: Watcher
    directory: Path

    async def ask(self, method: str, *params: object) -> object:
        return await self.devnet.provider.request(method, list(params))

    async def open(self, deposit: int = DEPOSIT) -> JobId:
        usdc, market = self.devnet.deployment.usdc, self.devnet.deployment.marketplace
        price = await self.contracts.model_price(self.host.address, MODEL.model_id, usdc)
        terms = SessionTerms(price, 3600, Tokens(100), 300)
        receipt = await self.transactions.send(
            self.calls.create_session(self.host.address, MODEL.model_id, usdc, deposit, terms),
            self.renter,
        )
        (created,) = receipt.events(market)
        assert isinstance(created, SessionCreated)
        return created.job_id

    async def mine(self, blocks: int) -> None:
        await self.ask("anvil_mine", hex(blocks))

    async def same_as_fresh(self) -> bool:
        fresh = await Ledger.open(
            self.directory / "fresh.db", owner=self.host.address, marker=self.directory / "fresh"
        )
        await Watcher(fresh, self.contracts, self.host.address, confirmations=1).step()
        theirs = {job: (one.terms, one.opened_in, one.ended) for job, one in fresh.sessions.items()}
        ours = {
            job: (one.terms, one.opened_in, one.ended)
            for job, one in self.ledger.sessions.items()
            if one.phase is not Phase.VANISHED
        }
        await fresh.close()
        return ours == theirs


@pytest.fixture
async def market(devnet: Devnet, tmp_path: Path) -> AsyncIterator[Market]:
    host, renter = new_wallet(), new_wallet()
    offer = HostOffer((MODEL.model_id,), "http://127.0.0.1:1")
    await provision_host(devnet.provider, devnet.deployment, host, offer)
    await provision_renter(devnet.provider, devnet.deployment, renter)
    contracts = Contracts(devnet.provider, devnet.deployment)
    transactions = Transactions(devnet.provider, poll_seconds=0.02)
    spender = devnet.deployment.marketplace
    await transactions.send(approve(devnet.deployment.usdc, spender, UNLIMITED), renter)
    ledger = await Ledger.open(tmp_path / "j.db", owner=host.address, marker=tmp_path / "marker")
    watcher = Watcher(ledger, contracts, host.address, confirmations=1)
    calls = Calls(devnet.deployment)
    yield Market(devnet, contracts, calls, transactions, host, renter, ledger, watcher, tmp_path)
    await ledger.close()


async def test_a_deposit_that_was_cut_off_and_mined_again_is_the_same_session(market: Market):
    before = await market.ask("evm_snapshot")
    job_id = await market.open()
    await market.mine(5)
    await market.watcher.step()
    session = market.ledger.session(job_id)
    await market.ask("evm_revert", before)
    await market.mine(8)
    await market.watcher.step()
    assert market.ledger.session(job_id).phase is Phase.VANISHED
    assert await market.open() == job_id
    await market.watcher.step()
    again = market.ledger.session(job_id)
    assert again.phase is Phase.ACTIVE
    assert again.opened_in != session.opened_in
    assert await market.same_as_fresh()


async def test_another_deposit_under_the_job_id_is_another_session(market: Market):
    before = await market.ask("evm_snapshot")
    job_id = await market.open()
    await market.watcher.step()
    await market.ask("evm_revert", before)
    await market.mine(3)
    assert await market.open(DEPOSIT + 1) == job_id
    await market.watcher.step()
    assert market.ledger.session(job_id).terms.deposit == DEPOSIT + 1
    assert [one.terms.deposit for one in market.ledger.parked] == [DEPOSIT]
    assert await market.same_as_fresh()


async def test_a_claim_is_not_taken_from_the_session_that_got_the_number(market: Market):
    """The contract would take the same bytes: they name a number and the same host."""
    before = await market.ask("evm_snapshot")
    job_id = await market.open()
    await market.watcher.step()
    await market.ask("evm_increaseTime", 60)
    await market.ledger.record(*delivered(market, job_id, 200))
    await market.ledger.record(
        ClaimPrepared(job_id, Claim(0, Tokens(0), Tokens(200), (b"salt",), bytes(32)))
    )
    queue = TransactionQueue(
        market.ledger,
        market.transactions,
        market.host,
        confirmations=1,
        metrics=Metrics("chain"),
        settings=QueueSettings(poll_seconds=0.02, mined_seconds=20.0),
    )
    claim = market.calls.submit_proof(
        job_id, Tokens(200), b"\x07" * 32, proof_cid="b", delta_cid="b"
    )
    await queue.execute(f"claim/{job_id}/0", claim)
    assert (await market.contracts.session(job_id)).tokens_used == 200
    await market.ask("evm_revert", before)
    await market.mine(3)
    assert await market.open(DEPOSIT + 1) == job_id
    await market.ask("evm_increaseTime", 60)
    await market.mine(1)
    await market.watcher.step()
    for _ in range(5):
        await queue.step()
        await market.mine(1)
    assert (await market.contracts.session(job_id)).tokens_used == 0
    assert market.ledger.outbox.pending == {}, "what is behind its nonce can be mined"


def delivered(market: Market, job_id: JobId, tokens: int) -> list[Entry]:
    """A request answered and acknowledged."""
    terms = market.ledger.session(job_id).terms
    ids = tuple(range(tokens))
    running = extend_hash(initial_hash(terms.chain_id, terms.marketplace, job_id), ids)
    request = RequestId("1" * 32)
    return [
        RequestAuthorised(job_id, request, Tokens(tokens), b"prompt"),
        TokensProduced(job_id, request, ids),
        RenterSentReceipt(job_id, Tokens(tokens), running, b"signature"),
    ]


async def test_a_completion_that_was_cut_off_opens_the_session_again(market: Market):
    job_id = await market.open()
    before = await market.ask("evm_snapshot")
    await market.transactions.send(market.calls.complete_session(job_id), market.renter)
    await market.mine(20)
    await market.watcher.step()
    assert market.ledger.session(job_id).phase is Phase.COMPLETED
    await market.ask("evm_revert", before)
    await market.mine(40)
    await market.watcher.step()
    assert market.ledger.session(job_id).phase is Phase.ACTIVE
    assert await market.same_as_fresh()


async def test_anvils_own_reorg_is_followed_and_one_below_the_window_is_not(market: Market):
    await market.open()
    await market.mine(70)
    await market.watcher.step()
    await market.ask("anvil_reorg", 64, [])
    assert await market.watcher.step()
    assert await market.same_as_fresh()
    await market.mine(1)
    await market.watcher.step()
    await market.ask("anvil_reorg", 66, [])
    await market.mine(1)
    with pytest.raises(Corrupt, match=r"chain\.reorg_window_blocks"):
        await market.watcher.step()
