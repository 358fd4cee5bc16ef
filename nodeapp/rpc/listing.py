"""Asking the chain process about the host's listing: status, plan, change, market."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Self

from nodeapp.core.ids import Address, ModelId
from nodeapp.core.listing import Wish
from nodeapp.service.client import RpcClient
from nodeapp.wire import ipc_listing as wire

READ_SECONDS = 30.0
CHANGE_SECONDS = 900.0
"""A change is several transactions, each with its confirmations."""


class ListingClient:
    """Use as an async context manager; a change that was cut off may be asked for again."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "chain")

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def view(self) -> wire.ListingView:
        """The listing as the chain shows it now."""
        return await self._rpc.get("/v1/listing", wire.ListingView, deadline_seconds=READ_SECONDS)

    async def plan(self, wish: Wish) -> tuple[wire.PlannedStep, ...]:
        """What a change would do.

        Raises:
            Rejected: the registry would refuse it, or the account cannot pay for it.
        """
        request = wire.ListingRequest(wish)
        reply = await self._rpc.call(
            "/v1/listing/plan", request, wire.ListingPlan, deadline_seconds=READ_SECONDS
        )
        return reply.steps

    def change(self, wish: Wish) -> AbstractAsyncContextManager[AsyncIterator[wire.ListingDone]]:
        """Carry it out, one event a mined transaction."""
        return self._rpc.stream(
            "/v1/listing/change",
            wire.ListingRequest(wish),
            wire.ListingDone,
            deadline_seconds=CHANGE_SECONDS,
        )

    async def unregister(self, *, force: bool = False) -> wire.ListingDone:
        """Leave the marketplace.

        Raises:
            Rejected: sessions are open and not `force`.
        """
        return await self._rpc.call(
            "/v1/listing/unregister",
            wire.UnregisterRequest(force),
            wire.ListingDone,
            deadline_seconds=CHANGE_SECONDS,
        )

    async def withdraw(self, asset: Address) -> wire.ListingDone:
        """Pull credited earnings of an asset."""
        return await self._rpc.call(
            "/v1/listing/withdraw",
            wire.WithdrawRequest(asset),
            wire.ListingDone,
            deadline_seconds=CHANGE_SECONDS,
        )

    async def version(self, known: int, *, wait_seconds: float) -> int:
        """The listing's version, as soon as it is not `known` (or after the wait)."""
        reply = await self._rpc.call(
            "/v1/listing/version",
            wire.ListingVersionRequest(known, wait_seconds),
            wire.ListingVersion,
            deadline_seconds=wait_seconds + READ_SECONDS,
        )
        return reply.version

    async def market(self, model_id: ModelId, asset: Address) -> wire.Market:
        """Prices of every host for a model."""
        return await self._rpc.call(
            "/v1/market",
            wire.MarketRequest(model_id, asset),
            wire.Market,
            deadline_seconds=READ_SECONDS * 4,
        )
