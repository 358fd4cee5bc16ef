"""The operator's verbs on the listing: show, plan, change, leave, withdraw.

Every step is one transaction through the queue under a key `host/<n>/…`, n counting what was done
before, so that a step interrupted after it was signed is sent again and never signed twice. After
each step the listing is read back from the chain and planned anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import msgspec
from aiohttp import web

from nodeapp.chain.ledger import Ledger
from nodeapp.chain.listing import read_bounds, read_listing
from nodeapp.chain.queue import TransactionQueue
from nodeapp.chain.withdrawals import Withdrawer
from nodeapp.core.audit import AuditSink, ListingChanged, Unrecorded
from nodeapp.core.errors import NotFound, Rejected, Unavailable
from nodeapp.core.ids import Address, ModelId
from nodeapp.core.listing import (
    AddStake,
    ApproveStake,
    Bounds,
    Listing,
    ListingStep,
    Purse,
    Register,
    SetApiUrl,
    SetMetadata,
    SetModels,
    SetPrice,
    Unregister,
    Wish,
    describe,
    findings,
    plan,
)
from nodeapp.core.session import Phase
from nodeapp.core.steps import is_left_to_renter
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.calls import NATIVE, Calls, approve
from nodeapp.evm.contracts import Contracts
from nodeapp.service.logs import get_logger
from nodeapp.service.server import endpoint, operator, query, stream_endpoint
from nodeapp.wire import ipc_listing as wire

READ_BACK_SECONDS = 30.0
READ_BACK_POLL_SECONDS = 0.5
MAX_STEPS = 200
ANY_BLOCK = BlockNumber(0)
MAX_MARKET_HOSTS = 500
MARKET_READS_AT_ONCE = 8
KEY_PREFIX = "host/"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registrar:
    """Owns nothing: the state is the chain's, the memory of sent transactions the ledger's."""

    contracts: Contracts
    calls: Calls
    queue: TransactionQueue
    ledger: Ledger
    withdrawer: Withdrawer
    host: Address
    public_key: bytes
    wish: Callable[[Listing], Wish]
    audit: AuditSink = field(default_factory=Unrecorded)

    async def view(self) -> wire.ListingView:
        """Everything an operator wants to see, as of the newest block."""
        deployment, host = self.contracts.deployment, self.host
        listing, bounds, purse = await self._read(ANY_BLOCK)
        wish = self.wish(listing)
        earnings = [
            wire.AssetBalance(asset, await self.contracts.earnings(host, asset))
            for asset in (deployment.usdc, NATIVE)
        ]
        return wire.ListingView(
            address=host,
            public_key=self.public_key,
            chain_id=deployment.chain_id,
            usdc=deployment.usdc,
            listing=listing,
            wish=wish,
            bounds=bounds,
            purse=purse,
            gas_balance=await self.contracts.provider.native_balance(host),
            earnings=tuple(earnings),
            findings=findings(listing, wish, bounds, public_key=self.public_key),
        )

    async def plan(self, request: wire.ListingRequest) -> wire.ListingPlan:
        """What a change would do; models are checked against the model registry."""
        steps = await self._plan(request.wish)
        return wire.ListingPlan(
            tuple(
                wire.PlannedStep(
                    describe(step), step.metadata if isinstance(step, SetMetadata) else ""
                )
                for step in steps
            )
        )

    async def change(self, request: wire.ListingRequest) -> AsyncIterator[wire.ListingDone]:
        """Carry a wish out; asked for again after an interruption it goes on.

        Raises:
            Rejected: a contract refused, or a step does not show on chain after it was mined.
        """
        last, block = None, ANY_BLOCK
        for _ in range(MAX_STEPS):
            steps = await self._plan(request.wish, block)
            if not steps:
                return
            if steps[0] == last:
                raise Rejected(f"mined, but the chain does not show it: {describe(steps[0])}")
            last = steps[0]
            done = await self._do(last)
            block = done.block_number
            yield done

    async def unregister(self, request: wire.UnregisterRequest) -> wire.ListingDone:
        """Leave; the stake comes back to the account.

        Raises:
            NotFound: not registered.
            Rejected: sessions are open; the marketplace takes claims of active hosts only.
        """
        listing = await read_listing(self.contracts, self.host)
        if not listing.is_active:
            raise NotFound(f"host {self.host} is not registered")
        unended = (Phase.ACTIVE, Phase.CLOSING)
        count = sum(
            session.phase in unended and not is_left_to_renter(session)
            for session in self.ledger.unsettled.values()
        )
        if count and not request.force:
            raise Rejected(
                f"{count} sessions are open and their claims would be refused; wait until they"
                " are settled, or give up what they still owe with --force"
            )
        return await self._do(Unregister(listing.stake))

    async def withdraw(self, request: wire.WithdrawRequest) -> wire.ListingDone:
        """Pull credited earnings now, to the payout address if there is one.

        Raises:
            NotFound: nothing is credited.
            Rejected: the transaction was refused.
        """
        plan, mined = await self.withdrawer.withdraw_now(request.asset)
        to = plan.payout or self.host
        text = f"withdraw {plan.amount} base units of {len(plan.job_ids)} sessions to {to}"
        return wire.ListingDone(text, mined.key, mined.tx_hash, mined.gas_used, mined.block_number)

    async def market(self, request: wire.MarketRequest) -> wire.Market:
        """Prices of every active host for a model."""
        hosts = await self.contracts.nodes_for_model(request.model_id)
        gate = asyncio.Semaphore(MARKET_READS_AT_ONCE)

        async def price(host: Address) -> wire.MarketPrice:
            async with gate:
                found = await self.contracts.price_or_zero(host, request.model_id, request.asset)
                return wire.MarketPrice(host, found)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(price(host)) for host in hosts[:MAX_MARKET_HOSTS]]
        found = [task.result() for task in asked if task.result().price]
        ordered = sorted(found, key=lambda item: (item.price, item.host))
        return wire.Market(tuple(ordered), await self.contracts.fee_basis_points())

    async def _read(self, since: BlockNumber) -> tuple[Listing, Bounds, Purse]:
        """All as of one block that is not before `since`."""
        deployment, host = self.contracts.deployment, self.host
        block = await self._head(since)
        listing = await read_listing(self.contracts, host, block)
        bounds = await read_bounds(self.contracts)
        purse = Purse(
            balance=await self.contracts.asset_balance(deployment.fab, host, block),
            allowance=await self.contracts.allowance(
                deployment.fab, host, deployment.node_registry, block
            ),
        )
        return listing, bounds, purse

    async def _head(self, since: BlockNumber) -> BlockNumber:
        """The newest block; an endpoint that lags behind our own transaction is waited for."""
        try:
            async with asyncio.timeout(READ_BACK_SECONDS):
                while True:
                    head = await self.contracts.provider.block_number()
                    if head >= since:
                        return head
                    await asyncio.sleep(READ_BACK_POLL_SECONDS)
        except TimeoutError as error:
            raise Unavailable(f"no endpoint shows block {since}; ask again") from error

    async def _plan(self, wish: Wish, since: BlockNumber = ANY_BLOCK) -> tuple[ListingStep, ...]:
        listing, bounds, purse = await self._read(since)
        steps = plan(listing, wish, bounds, purse)
        for step in steps:
            if isinstance(step, Register | SetModels):
                await self._check_models(step.model_ids)
        if steps and await self._gas_balance() == 0:
            raise Rejected(
                f"account {self.host} holds no native coin to pay gas with; send some to it first"
            )
        return steps

    async def _check_models(self, model_ids: Sequence[ModelId]) -> None:
        for model_id in model_ids:
            if not await self.contracts.is_model_approved(model_id):
                raise Rejected(
                    f"model {model_id} is not approved on chain; check repo and file name, or"
                    " propose it to the marketplace"
                )

    async def _gas_balance(self) -> Wei:
        return await self.contracts.provider.native_balance(self.host)

    async def _do(self, step: ListingStep) -> wire.ListingDone:
        name = type(step).__name__.lower()
        digest = hashlib.sha256(msgspec.json.encode(step)).hexdigest()[:8]
        return await self._send(f"{name}/{digest}", self._call(step), describe(step))

    async def _send(self, purpose: str, call: Call, text: str) -> wire.ListingDone:
        done_before = sum(key.startswith(KEY_PREFIX) for key in self.ledger.mined)
        key = f"{KEY_PREFIX}{done_before}/{purpose}"
        mined = await self.queue.execute(key, call)
        self.audit.record(ListingChanged(text, mined.tx_hash))
        _log.info("listing changed", step=text, tx_hash=mined.tx_hash)
        return wire.ListingDone(text, key, mined.tx_hash, mined.gas_used, mined.block_number)

    def _call(self, step: ListingStep) -> Call:  # noqa: C901  # one closed union
        deployment, calls = self.contracts.deployment, self.calls
        match step:
            case ApproveStake(amount):
                return approve(deployment.fab, deployment.node_registry, amount)
            case Register():
                return calls.register_node(
                    step.metadata,
                    step.api_url,
                    step.model_ids,
                    min_price_native=step.min_native,
                    min_price_stable=step.min_stable,
                )
            case AddStake(amount):
                return calls.add_stake(amount)
            case SetApiUrl(url):
                return calls.update_api_url(url)
            case SetMetadata(metadata):
                return calls.update_metadata(metadata)
            case SetModels(models):
                return calls.update_supported_models(models)
            case SetPrice(item) if item.price == 0:
                return calls.clear_model_price(item.model_id, item.asset)
            case SetPrice(item):
                return calls.set_model_price(item.model_id, item.asset, item.price)
            case Unregister():
                return calls.unregister_node()
            case _:
                assert_never(step)


def routes(registrar: Callable[[], Registrar]) -> Sequence[web.RouteDef]:
    """The operator's API; `registrar` raises Unavailable while the process starts."""

    async def view() -> wire.ListingView:
        return await registrar().view()

    def change(request: wire.ListingRequest) -> AsyncIterator[wire.ListingDone]:
        return registrar().change(request)

    return [
        web.get("/v1/listing", query(view)),
        web.post(
            "/v1/listing/plan", endpoint(wire.ListingRequest, lambda ask: registrar().plan(ask))
        ),
        web.post("/v1/listing/change", operator(stream_endpoint(wire.ListingRequest, change))),
        web.post(
            "/v1/listing/unregister",
            operator(endpoint(wire.UnregisterRequest, lambda ask: registrar().unregister(ask))),
        ),
        web.post(
            "/v1/listing/withdraw",
            operator(endpoint(wire.WithdrawRequest, lambda ask: registrar().withdraw(ask))),
        ),
        web.post("/v1/market", endpoint(wire.MarketRequest, lambda ask: registrar().market(ask))),
    ]
