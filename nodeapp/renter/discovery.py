"""Find hosts of a model: bootstrap -> DHT provider record -> signed offer -> chain registry.

Nothing a peer says is believed: the offer must be signed by a wallet that the registry lists as
an active host of this model at this price, for the very peer we are connected to.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nodeapp.core.errors import NodeError, NotFound, Rejected, Unauthorised, Unavailable
from nodeapp.core.ids import Address, ModelId, PeerId
from nodeapp.evm.contracts import Contracts
from nodeapp.network.dht import ProviderInfo
from nodeapp.network.host import Libp2pHost
from nodeapp.security.capability import check_capability
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import CapabilityRecord, ModelOffer
from nodeapp.wire.provider_key import provider_key

SEARCH_SECONDS = 30.0
SEARCH_PAUSE_SECONDS = 0.5
CAPABILITY_SECONDS = 10.0
ASK_SECONDS = 8.0
"""For one provider, dialling included; anybody may announce a host that never answers."""
ROUND_SECONDS = 20.0
SETTLE_SECONDS = 2.0
"""After the first good offer the slower hosts are waited for so long and no longer."""
ASKED_AT_ONCE = 24
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundHost:
    """A checked offer and the address that answered."""

    record: CapabilityRecord
    offer: ModelOffer
    address: str
    providers: int
    answer_seconds: float
    """How long it took to tell its offer, connecting included."""

    @property
    def wallet(self) -> Address:
        """Who sells."""
        return self.record.wallet

    @property
    def price_per_token(self) -> int:
        """Base units per 1000 tokens."""
        return self.offer.price_per_token


class Discovery:
    """Looks hosts up with one libp2p host."""

    def __init__(
        self, host: Libp2pHost, contracts: Contracts, bootstrap: tuple[str, ...], clock: Clock
    ) -> None:
        self._host = host
        self._contracts = contracts
        self._bootstrap = bootstrap
        self._clock = clock

    async def find(self, model_id: ModelId, *, max_price: int) -> list[FoundHost]:
        """Hosts that sell the model now; searched until one is found.

        Raises:
            NotFound: the registry does not list the model, or no host offers it in time.
            Unavailable: no bootstrap node answers.
        """
        await self._contracts.model(model_id)
        await self._host.dht.join(self._bootstrap)
        key = provider_key(model_id, self._contracts.deployment.chain_id)
        reasons: dict[str, str] = {}
        try:
            async with asyncio.timeout(SEARCH_SECONDS):
                while True:
                    providers = await self._host.dht.find_providers(key)
                    found = await self._ask_all(providers, model_id, max_price, reasons)
                    if found:
                        return found
                    await asyncio.sleep(SEARCH_PAUSE_SECONDS)
        except TimeoutError as error:
            why = "; ".join(f"{peer}: {reason}" for peer, reason in reasons.items())
            raise NotFound(
                f"no host offers model {model_id} within {SEARCH_SECONDS:g} s"
                + (f" ({why})" if why else "")
            ) from error

    async def _ask_all(
        self,
        providers: list[ProviderInfo],
        model_id: ModelId,
        max_price: int,
        reasons: dict[str, str],
    ) -> list[FoundHost]:
        """Those that answered rightly; a silent one costs its own time, not the others'."""
        found: list[FoundHost] = []
        places = asyncio.Semaphore(ASKED_AT_ONCE)
        limit = asyncio.timeout(ROUND_SECONDS)

        async def ask(provider: ProviderInfo) -> None:
            async with places:
                try:
                    async with asyncio.timeout(ASK_SECONDS):
                        host = await self._ask(provider, model_id, max_price, len(providers))
                    found.append(host)
                    soon = asyncio.get_running_loop().time() + SETTLE_SECONDS
                    if not limit.expired():
                        limit.reschedule(min(soon, limit.when() or soon))
                except TimeoutError:
                    reasons[provider.peer_id] = f"no answer inside {ASK_SECONDS:g} s"
                except NodeError as error:
                    reasons[provider.peer_id] = error.message
                    _log.info("passed over", peer_id=provider.peer_id, error=error.message)

        try:
            async with limit, asyncio.TaskGroup() as tasks:
                for provider in providers:
                    tasks.create_task(ask(provider))
        except TimeoutError:
            _log.info("not all providers were asked", providers=len(providers), found=len(found))
        return found

    async def _ask(
        self, provider: ProviderInfo, model_id: ModelId, max_price: int, count: int
    ) -> FoundHost:
        begun = self._clock.monotonic_seconds()
        address = await self._connect(provider)
        stream = await self._host.open_stream(provider.peer_id, [envelope.CAPABILITY_PROTOCOL])
        try:
            await stream.write_frame(envelope.encode(capability_request=pb.CapabilityRequest()))
            frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, CAPABILITY_SECONDS)
        finally:
            await stream.reset()
        if frame is None:
            raise Unavailable("host closed the stream without an offer")
        reply = envelope.decode(frame)
        if reply.WhichOneof("body") == "error":
            raise envelope.error_of(reply.error)
        record, offer = await self.check(reply.capability, provider.peer_id, model_id)
        if offer.price_per_token > max_price:
            raise Rejected(f"price {offer.price_per_token} is over the limit {max_price}")
        seconds = round(self._clock.monotonic_seconds() - begun, 4)
        return FoundHost(record, offer, address, count, seconds)

    async def _connect(self, provider: ProviderInfo) -> str:
        failure: NodeError = Unavailable("provider record has no address")
        for address in provider.addresses:
            try:
                await self._host.connect(address)
            except NodeError as error:
                failure = error
            else:
                return address
        raise failure

    async def check(
        self, capability: pb.Capability, peer_id: PeerId, model_id: ModelId
    ) -> tuple[CapabilityRecord, ModelOffer]:
        """Hold an offer against signature, connection, clock and chain.

        Raises:
            Unauthorised: signature, peer, chain or registration do not fit.
            NotFound: the model is not in it.
            Rejected: expired, or another price than on chain.
        """
        record = check_capability(capability, self._clock.unix_seconds())
        deployment = self._contracts.deployment
        if (record.chain_id, record.marketplace) != (deployment.chain_id, deployment.marketplace):
            raise Unauthorised(f"offer is for chain {record.chain_id}, {record.marketplace}")
        if record.peer_id != peer_id:
            raise Unauthorised(f"offer names peer {record.peer_id}, we speak to {peer_id}")
        offers = [offer for offer in record.models if offer.model_id == model_id]
        if not offers:
            raise NotFound(f"host does not offer model {model_id}")
        await self._check_chain(record, offers[0])
        return record, offers[0]

    async def _check_chain(self, record: CapabilityRecord, offer: ModelOffer) -> None:
        if not await self._contracts.is_active_node(record.wallet):
            raise Unauthorised(f"{record.wallet} is not an active host of the registry")
        price = await self._contracts.model_price(record.wallet, offer.model_id, offer.asset)
        if price != offer.price_per_token:
            raise Rejected(f"offer asks {offer.price_per_token}, the registry says {price}")
        model = await self._contracts.model(offer.model_id)
        if model.sha256.hex() != offer.sha256:
            raise Rejected(f"offer's model file {offer.sha256} is not the approved one")
