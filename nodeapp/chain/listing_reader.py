"""What the chain shows of this host's listing: view, plan, market. Nothing is signed or written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from nodeapp.chain.listing import read_bounds, read_listing
from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.ids import Address, ModelId
from nodeapp.core.listing import (
    Bounds,
    Listing,
    ListingStep,
    Purse,
    Register,
    SetMetadata,
    SetModels,
    Wish,
    describe,
    findings,
    plan,
)
from nodeapp.core.units import BlockNumber
from nodeapp.evm.calls import NATIVE
from nodeapp.evm.contracts import Contracts
from nodeapp.service.server import endpoint, query
from nodeapp.wire import ipc_listing as wire

READ_BACK_SECONDS = 30.0
READ_BACK_POLL_SECONDS = 0.5
ANY_BLOCK = BlockNumber(0)
MAX_MARKET_HOSTS = 500
MARKET_READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class ListingReader:
    """One host's."""

    contracts: Contracts
    host: Address
    public_key: bytes
    wish: Callable[[Listing], Wish]
    """What the settings ask for."""

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
        steps = await self.steps(request.wish)
        return wire.ListingPlan(
            tuple(
                wire.PlannedStep(
                    describe(step), step.metadata if isinstance(step, SetMetadata) else ""
                )
                for step in steps
            )
        )

    async def steps(self, wish: Wish, since: BlockNumber = ANY_BLOCK) -> tuple[ListingStep, ...]:
        """What is left to do, as of a block that is not before `since`.

        Raises:
            Rejected: the registry would refuse it, or the account cannot pay for it.
        """
        listing, bounds, purse = await self._read(since)
        steps = plan(listing, wish, bounds, purse)
        for step in steps:
            if isinstance(step, Register | SetModels):
                await self._check_models(step.model_ids)
        if steps and await self.contracts.provider.native_balance(self.host) == 0:
            raise Rejected(
                f"account {self.host} holds no native coin to pay gas with; send some to it first"
            )
        return steps

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

    async def _check_models(self, model_ids: Sequence[ModelId]) -> None:
        for model_id in model_ids:
            if not await self.contracts.is_model_approved(model_id):
                raise Rejected(
                    f"model {model_id} is not approved on chain; check repo and file name, or"
                    " propose it to the marketplace"
                )


def routes(reader: Callable[[], ListingReader]) -> Sequence[web.RouteDef]:
    """The reading part of the operator's API; `reader` raises Unavailable while it starts."""

    async def view() -> wire.ListingView:
        return await reader().view()

    return [
        web.get("/v1/listing", query(view)),
        web.post("/v1/listing/plan", endpoint(wire.ListingRequest, lambda ask: reader().plan(ask))),
        web.post("/v1/market", endpoint(wire.MarketRequest, lambda ask: reader().market(ask))),
    ]
