"""What a host hears of pauses, delegates, slashes and prices, read back from a real chain."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nodeapp.core.units import BlockNumber, Wei
from nodeapp.devnet.main import Devnet
from nodeapp.devnet.provision import HostOffer, provision_host, provision_renter
from nodeapp.evm import events as ev
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import (
    NATIVE,
    UNLIMITED,
    SessionTerms,
    approve,
    send_native,
)
from nodeapp.evm.marketplace_events import MarketplaceEvents
from nodeapp.evm.transactions import Transactions
from tests.contracts.calls import AllCalls, DelegateLimits
from tests.contracts.world import DAY_SECONDS, FAB, MODEL

DEPOSIT = 2_000_000


@dataclass
class Stage:
    devnet: Devnet
    calls: AllCalls
    transactions: Transactions
    host: Wallet
    renter: Wallet

    async def heard(self, host: Wallet | None = None) -> tuple[ev.HostEvent, ...]:
        logs = MarketplaceEvents(self.devnet.provider, self.devnet.deployment)
        head = await self.devnet.provider.block_number()
        return await logs.get_host_events(BlockNumber(0), head, (host or self.host).address)

    async def pass_seconds(self, seconds: int) -> None:
        await self.devnet.provider.request("evm_increaseTime", [seconds])
        await self.devnet.provider.request("evm_mine", [])


@pytest.fixture
async def stage(devnet: Devnet) -> Stage:
    host, renter = new_wallet(), new_wallet()
    offer = HostOffer((MODEL.model_id,), "http://127.0.0.1:1")
    await provision_host(devnet.provider, devnet.deployment, host, offer)
    await provision_renter(devnet.provider, devnet.deployment, renter)
    transactions = Transactions(devnet.provider, poll_seconds=0.02)
    return Stage(devnet, AllCalls(devnet.deployment), transactions, host, renter)


async def test_a_host_hears_who_opened_its_sessions(stage: Stage) -> None:
    usdc, market = stage.devnet.deployment.usdc, stage.devnet.deployment.marketplace
    delegate, send = new_wallet(), stage.transactions.send
    await send(send_native(delegate.address, Wei(10**18)), stage.renter)
    await send(approve(usdc, market, UNLIMITED), stage.renter)
    limits = DelegateLimits(max_per_session=DEPOSIT, host=stage.host.address)
    await send(stage.calls.configure_delegate(delegate.address, limits), stage.renter)
    terms = SessionTerms(2000, 3600, 100, 300)
    open_call = stage.calls.create_session_as_delegate(
        stage.renter.address,
        stage.host.address,
        MODEL.model_id,
        asset=usdc,
        deposit=DEPOSIT,
        terms=terms,
    )
    receipt = await send(open_call, delegate)
    await send(stage.calls.deposit_asset(usdc, DEPOSIT), stage.renter)
    from_balance = stage.calls.create_session_from_deposit(
        stage.host.address, MODEL.model_id, usdc, DEPOSIT, terms
    )
    await send(from_balance, stage.renter)
    (created,) = receipt.events(market)
    assert isinstance(created, ev.SessionCreated)
    assert created.depositor == stage.renter.address
    opened = [e for e in await stage.heard() if isinstance(e, ev.OpeningEvent)]
    assert [type(event) for event in opened] == [
        ev.SessionCreatedByDelegate,
        ev.SessionCreatedByDepositor,
    ]
    by_delegate, by_depositor = opened
    assert isinstance(by_delegate, ev.SessionCreatedByDelegate)
    assert (by_delegate.payer, by_delegate.delegate) == (stage.renter.address, delegate.address)
    assert (by_delegate.job_id, by_delegate.model_id) == (created.job_id, MODEL.model_id)
    assert (by_delegate.deposit, by_delegate.at.tx_hash) == (DEPOSIT, receipt.hash)
    assert by_depositor.job_id == created.job_id + 1
    # A stranger's sessions are nobody else's news.
    assert not any(isinstance(e, ev.OpeningEvent) for e in await stage.heard(delegate))


async def test_a_host_hears_of_slashes_until_it_is_out(stage: Stage) -> None:
    owner, send = stage.devnet.owner, stage.transactions.send
    for amount in (500, 250, 125, 60):
        call = stage.calls.slash(
            stage.host.address, amount * FAB, evidence_cid="bevidence", reason="overclaim"
        )
        await send(call, owner)
        await stage.pass_seconds(DAY_SECONDS)
    heard = [e for e in await stage.heard() if not isinstance(e, ev.ModelPriceUpdated)]
    registered, *slashes, out = heard
    assert isinstance(registered, ev.NodeRegistered)
    assert registered.stake == 1000 * FAB
    assert [
        (s.amount // FAB, s.remaining // FAB) for s in slashes if isinstance(s, ev.NodeSlashed)
    ] == [
        (500, 500),
        (250, 250),
        (125, 125),
        (60, 65),
    ]
    last = slashes[-1]
    assert isinstance(last, ev.NodeSlashed)
    assert (last.evidence_cid, last.reason, last.executor) == (
        "bevidence",
        "overclaim",
        owner.address,
    )
    block = await stage.devnet.provider.block(last.at.block_number)
    assert last.slashed_at == block.timestamp
    assert isinstance(out, ev.NodeAutoUnregistered)
    assert (out.slashed // FAB, out.returned // FAB, out.reason) == (60, 65, "overclaim")


async def test_a_host_hears_of_pauses_prices_and_its_own_leave(stage: Stage) -> None:
    usdc, owner = stage.devnet.deployment.usdc, stage.devnet.owner
    for call, sender in (
        (stage.calls.pause(), owner),
        (stage.calls.unpause(), owner),
        (stage.calls.set_model_price(MODEL.model_id, usdc, 777), stage.host),
        (stage.calls.clear_model_price(MODEL.model_id, NATIVE), stage.host),
        (stage.calls.unregister_node(), stage.host),
    ):
        await stage.transactions.send(call, sender)
    *_, paused, unpaused, priced, cleared, left = await stage.heard()
    assert isinstance(paused, ev.MarketplacePaused)
    assert isinstance(unpaused, ev.MarketplaceUnpaused)
    assert paused.account == unpaused.account == owner.address
    assert isinstance(priced, ev.ModelPriceUpdated)
    assert (priced.model_id, priced.asset, priced.price) == (MODEL.model_id, usdc, 777)
    assert isinstance(cleared, ev.ModelPriceUpdated)
    assert (cleared.asset, cleared.price) == (NATIVE, 0)
    assert isinstance(left, ev.NodeUnregistered)
    assert (left.host, left.returned) == (stage.host.address, 1000 * FAB)
    assert [type(e) for e in await stage.heard(stage.renter)] == [
        ev.MarketplacePaused,
        ev.MarketplaceUnpaused,
    ]
