"""Watch this host's listing: what the registry shows at confirmed blocks against the settings.

Registry events of this host are looked for with every block; all else (a model's approval) is read
again every `check_seconds`. What is wrong is shown, counted and logged; nothing is changed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.core.ids import Address, ModelId
from nodeapp.core.listing import (
    Bounds,
    Listing,
    ModelPrice,
    Wish,
    merge_metadata,
    parse_model,
    parse_prices,
)
from nodeapp.core.units import BaseUnits, BlockNumber
from nodeapp.evm.calls import NATIVE
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.events import NodeAutoUnregistered, NodeSlashed
from nodeapp.evm.marketplace_events import MarketplaceEvents
from nodeapp.evm.provider import BlockTag
from nodeapp.evm.registry_events import RegistryEvents
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from nodeapp.wire.peer_id import public_key_of

STREAMING, LEDGER_PROOF = "streaming", "ezkl-ledger-proof"
_log = get_logger(__name__)


async def read_listing(contracts: Contracts, host: Address, block: BlockTag = "latest") -> Listing:
    """The listing with every price and every model's approval."""
    try:
        node = await contracts.node(host, block)
    except NotFound:
        return Listing()
    prices: list[ModelPrice] = []
    unapproved: list[ModelId] = []
    names: list[tuple[ModelId, str]] = []
    for model in node.model_ids:
        if not await contracts.is_model_approved(model, block):
            unapproved.append(model)
        with contextlib.suppress(NotFound):
            known = await contracts.model(model)
            names.append((model, f"{known.repo}/{known.file_name}"))
        for asset in (contracts.deployment.usdc, NATIVE):
            price = await contracts.price_or_zero(host, model, asset, block)
            if price:
                prices.append(ModelPrice(model, asset, price))
    return Listing(
        is_active=node.active,
        stake=node.stake,
        metadata=node.metadata,
        api_url=node.api_url,
        model_ids=node.model_ids,
        prices=tuple(prices),
        unapproved=tuple(unapproved),
        names=tuple(names),
    )


async def read_bounds(contracts: Contracts) -> Bounds:
    """The registry's constants."""
    return Bounds(
        min_stake=await contracts.min_stake(),
        native=await contracts.price_bounds(native=True),
        stable=await contracts.price_bounds(native=False),
    )


def settings_wish(
    settings: ChainSettings, listing: Listing, *, usdc: Address, public_key: bytes
) -> Wish:
    """What the settings ask for; what they leave empty is left as it is on chain.

    Raises:
        InvalidRequest: a model or a price is not written as it should be.
    """
    models = tuple(parse_model(text) for text in settings.listing_models) or None
    return Wish(
        api_url=settings.listing_api_url or None,
        metadata=merge_metadata(
            listing.metadata, metadata_fields(settings, listing.metadata, public_key)
        ),
        model_ids=models,
        prices=parse_prices(
            settings.listing_prices, models or listing.model_ids, usdc=usdc, native=NATIVE
        ),
    )


def metadata_fields(
    settings: ChainSettings, metadata: str, public_key: bytes
) -> Mapping[str, object]:
    """The parts of the registration's JSON that are ours.

    Source: registration metadata of the SDK; `publicKey` is the compressed key without 0x.
    """
    fields: dict[str, object] = {}
    if not metadata:
        fields = {
            "hardware": {"gpu": "none", "vram": 0, "ram": _ram_gib()},
            "capabilities": [STREAMING, *([] if settings.proof == "off" else [LEDGER_PROOF])],
            "location": "",
            "maxConcurrent": 1,
            "costPerToken": 0,
        }
    if settings.listing_gpu:
        fields["hardware"] = {
            "gpu": settings.listing_gpu,
            "vram": settings.listing_vram_gib,
            "ram": _ram_gib(),
        }
    if settings.listing_libp2p:
        fields["libp2p"] = _libp2p(settings.listing_libp2p)
    if settings.listing_location:
        fields["location"] = settings.listing_location
    if settings.listing_max_concurrent:
        fields["maxConcurrent"] = settings.listing_max_concurrent
    return fields | {"publicKey": public_key.hex()}


def _libp2p(addresses: Sequence[str]) -> Mapping[str, object]:
    """What renters read, `RegisteredMetadata` of renter/sources.py.

    Raises:
        InvalidRequest: an address without a peer id, or of two peers.
    """
    peers = {address.rpartition("/p2p/")[2] for address in addresses}
    peer_id = next(iter(peers))
    if len(peers) != 1:
        raise InvalidRequest(f"chain.listing_libp2p names {len(peers)} peers: {', '.join(peers)}")
    public_key_of(peer_id)
    return {"peerId": peer_id, "addresses": list(addresses)}


def _ram_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


class ListingWatch:
    """Call `step` with every confirmed block; `version` rises when the listing changed."""

    def __init__(
        self,
        contracts: Contracts,
        host: Address,
        *,
        judge: Callable[[Listing, Bounds], tuple[str, ...]],
        check_seconds: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._contracts = contracts
        self._events = RegistryEvents(contracts.provider, contracts.deployment)
        self._news = MarketplaceEvents(contracts.provider, contracts.deployment)
        self._host = host
        self._judge = judge
        self._check_seconds = check_seconds
        self._clock = clock
        self._bounds: Bounds | None = None
        self._seen = BlockNumber(-1)
        self._checked_seconds = 0.0
        self._changed = asyncio.Event()
        self._active = metrics.gauge("listing_active", "1: registered and active on chain")
        self._count = metrics.gauge("listing_findings", "what is wrong with the listing")
        self._stake = metrics.gauge("listing_stake_fab", "staked FAB, whole units")
        self._slashes = metrics.counter("slashes", "times that part of our stake was taken")
        self.listing: Listing | None = None
        self.findings: tuple[str, ...] = ()
        # Other than in the life before: who waits for a change may have missed one.
        self.version = int(clock.unix_seconds() * 1000)

    async def step(self, block: BlockNumber) -> None:
        """Look whether the listing changed up to this confirmed block.

        Raises:
            Unavailable: no endpoint answered; call again.
        """
        if block == self._seen:
            return
        now = self._clock.monotonic_seconds()
        is_due = self.listing is None or now - self._checked_seconds >= self._check_seconds
        first = BlockNumber(self._seen + 1)
        is_touched = await self._events.touched(first, block, self._host)
        if is_due or is_touched:
            await self._read(block)
            self._checked_seconds = now
        if is_touched and self._seen >= 0:
            await self._tell(first, block)
        self._seen = block

    async def wait(self, known: int, seconds: float) -> int:
        """The version, once it is not `known` or the time is over."""
        try:
            async with asyncio.timeout(seconds):
                while self.version == known:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.version

    def summary(self) -> str:
        """For the readiness line, "" when all is well."""
        if not self.findings:
            return ""
        more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
        return f"listing: {self.findings[0]}{more}"

    async def _tell(self, first: BlockNumber, last: BlockNumber) -> None:
        """Say who took stake and why; the listing only shows that some is missing."""
        for event in await self._news.get_host_events(first, last, self._host):
            if isinstance(event, NodeSlashed):
                self._slashes.inc()
                _log.error(
                    "stake was slashed",
                    fab=event.amount / 10**18,
                    remaining_fab=event.remaining / 10**18,
                    reason=event.reason,
                    evidence_cid=event.evidence_cid,
                    executor=event.executor,
                    tx_hash=event.at.tx_hash,
                )
            elif isinstance(event, NodeAutoUnregistered):
                _log.error(
                    "unregistered for too little stake: no claim is accepted any more",
                    returned_fab=event.returned / 10**18,
                    reason=event.reason,
                    tx_hash=event.at.tx_hash,
                )

    async def _read(self, block: BlockNumber) -> None:
        if self._bounds is None:
            self._bounds = await read_bounds(self._contracts)
        listing = await read_listing(self._contracts, self._host, block)
        found = self._judge(listing, self._bounds)
        for text in found:
            if text not in self.findings:
                _log.warning("listing needs attention", finding=text)
        self.findings = found
        self._active.set(listing.is_active)
        self._count.set(len(found))
        self._stake.set(BaseUnits(listing.stake // 10**18))
        if listing != self.listing:
            self.listing = listing
            self.version += 1
            self._changed.set()
            self._changed = asyncio.Event()
            _log.info("listing read", block=block, active=listing.is_active, version=self.version)
