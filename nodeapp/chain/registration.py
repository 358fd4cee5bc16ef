"""The operator's verbs that change the listing: change, leave, withdraw.

Every step is one transaction through the queue under a key `host/<n>/…`, n counting what was done
before, so that a step interrupted after it was signed is sent again and never signed twice. After
each step the listing is read back from the chain and planned anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import msgspec
from aiohttp import web

from nodeapp.chain import listing_reader
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.listing import read_listing
from nodeapp.chain.listing_reader import ANY_BLOCK, ListingReader
from nodeapp.chain.queue import TransactionQueue
from nodeapp.chain.withdrawals import Withdrawer
from nodeapp.core.audit import AuditSink, ListingChanged, Unrecorded
from nodeapp.core.errors import NotFound, Rejected
from nodeapp.core.listing import (
    AddStake,
    ApproveStake,
    ListingStep,
    Register,
    SetApiUrl,
    SetMetadata,
    SetModels,
    SetPrice,
    Unregister,
    describe,
)
from nodeapp.core.session import Phase
from nodeapp.core.steps import is_left_to_renter
from nodeapp.evm.abi import Call
from nodeapp.evm.calls import Calls, approve
from nodeapp.service.logs import get_logger
from nodeapp.service.server import endpoint, operator, stream_endpoint
from nodeapp.wire import ipc_listing as wire

MAX_STEPS = 200
KEY_PREFIX = "host/"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registrar:
    """Owns nothing: the state is the chain's, the memory of sent transactions the ledger's."""

    reader: ListingReader
    calls: Calls
    queue: TransactionQueue
    ledger: Ledger
    withdrawer: Withdrawer
    audit: AuditSink = field(default_factory=Unrecorded)

    async def change(self, request: wire.ListingRequest) -> AsyncIterator[wire.ListingDone]:
        """Carry a wish out; asked for again after an interruption it goes on.

        Raises:
            Rejected: a contract refused, or a step does not show on chain after it was mined.
        """
        last, block = None, ANY_BLOCK
        for _ in range(MAX_STEPS):
            steps = await self.reader.steps(request.wish, block)
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
        listing = await read_listing(self.reader.contracts, self.reader.host)
        if not listing.is_active:
            raise NotFound(f"host {self.reader.host} is not registered")
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
        to = plan.payout or self.reader.host
        text = f"withdraw {plan.amount} base units of {len(plan.job_ids)} sessions to {to}"
        return wire.ListingDone(text, mined.key, mined.tx_hash, mined.gas_used, mined.block_number)

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
        deployment, calls = self.reader.contracts.deployment, self.calls
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

    def change(request: wire.ListingRequest) -> AsyncIterator[wire.ListingDone]:
        return registrar().change(request)

    return [
        *listing_reader.routes(lambda: registrar().reader),
        web.post("/v1/listing/change", operator(stream_endpoint(wire.ListingRequest, change))),
        web.post(
            "/v1/listing/unregister",
            operator(endpoint(wire.UnregisterRequest, lambda ask: registrar().unregister(ask))),
        ),
        web.post(
            "/v1/listing/withdraw",
            operator(endpoint(wire.WithdrawRequest, lambda ask: registrar().withdraw(ask))),
        ),
    ]
