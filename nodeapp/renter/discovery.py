"""Find hosts of a model: hints from every source -> signed offer -> chain registry.

Nothing a peer says is believed: the offer must be signed by a wallet that the registry lists as
an active host of this model at this price, for the very peer we are connected to.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from nodeapp.core.errors import NodeError, NotFound, Rejected, Unauthorised, Unavailable
from nodeapp.core.ids import Address, ModelId, PeerId
from nodeapp.evm.contracts import Contracts
from nodeapp.network.host import Libp2pHost
from nodeapp.renter.sources import Hint, Source, Sources, each_hint
from nodeapp.security.capability import check_capability
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import PROVEN, CapabilityRecord, ModelOffer

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
    source: str
    """Which source named it first."""
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


@dataclass(slots=True)
class _Round:
    """One look at every source; a host named twice is asked once at the same address."""

    model_id: ModelId
    max_price: int
    limit: asyncio.Timeout
    found: list[FoundHost] = field(default_factory=list)
    asked: dict[PeerId, frozenset[str]] = field(default_factory=dict)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ASKED_AT_ONCE))

    def news(self, hint: Hint) -> Hint | None:
        """The part of a hint that was not tried; None when there is nothing new in it."""
        known = self.asked.get(hint.peer_id)
        addresses = tuple(a for a in hint.addresses if known is None or a not in known)
        if known is not None and not addresses:
            return None
        self.asked[hint.peer_id] = (known or frozenset()) | frozenset(addresses)
        return replace(hint, addresses=addresses)

    def add(self, host: FoundHost) -> None:
        """Keep a good offer, one of each peer."""
        if all(host.record.peer_id != known.record.peer_id for known in self.found):
            self.found.append(host)


class Discovery:
    """Looks hosts up with one libp2p host."""

    def __init__(self, sources: Sources, *, require_proofs: bool = False) -> None:
        self._sources = sources
        self._host: Libp2pHost = sources.host
        self._contracts: Contracts = sources.contracts
        self._clock: Clock = sources.clock
        self._require_proofs = require_proofs
        self._reasons: dict[str, str] = {}

    async def find(self, model_id: ModelId, *, max_price: int) -> list[FoundHost]:
        """Hosts that sell the model now; searched until one is found.

        Raises:
            NotFound: the registry does not list the model, or no host offers it in time.
            Unavailable: the chain does not answer.
        """
        await self._contracts.model(model_id)
        self._reasons.clear()
        try:
            async with asyncio.timeout(SEARCH_SECONDS):
                while True:
                    found = await self._look(model_id, max_price)
                    if found:
                        return found
                    await asyncio.sleep(SEARCH_PAUSE_SECONDS)
        except TimeoutError as error:
            why = "; ".join(f"{name}: {reason}" for name, reason in self._reasons.items())
            raise NotFound(
                f"no host offers model {model_id} within {SEARCH_SECONDS:g} s"
                + (f" ({why})" if why else "")
            ) from error

    async def _look(self, model_id: ModelId, max_price: int) -> list[FoundHost]:
        """Those that answered rightly; a silent one costs its own time, not the others'."""
        round_ = _Round(model_id, max_price, asyncio.timeout(ROUND_SECONDS))
        try:
            async with round_.limit, asyncio.TaskGroup() as tasks:
                for name, source in self._sources.all().items():
                    tasks.create_task(self._read(name, source, round_, tasks))
        except TimeoutError:
            _log.info("not all hosts were asked", named=len(round_.asked), found=len(round_.found))
        return round_.found

    async def _read(
        self, name: str, source: Source, round_: _Round, tasks: asyncio.TaskGroup
    ) -> None:
        def take(hint: Hint) -> None:
            news = round_.news(self._sources.allowed(hint))
            if news is not None:
                tasks.create_task(self._try(news, round_))

        trouble = await each_hint(source, round_.model_id, take)
        if trouble:
            self._reasons[name] = trouble

    async def _try(self, hint: Hint, round_: _Round) -> None:
        async with round_.places:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    found = await self._ask(hint, round_.model_id, round_.max_price)
            except TimeoutError:
                self._reasons[hint.peer_id] = f"no answer inside {ASK_SECONDS:g} s"
            except NodeError as error:
                self._reasons[hint.peer_id] = error.message
                _log.info("passed over", peer_id=hint.peer_id, error=error.message)
            else:
                round_.add(found)
                now = self._clock.unix_seconds()
                self._sources.standings.met(found.wallet, hint.peer_id, found.address, now)
                soon = asyncio.get_running_loop().time() + SETTLE_SECONDS
                if not round_.limit.expired():
                    round_.limit.reschedule(min(soon, round_.limit.when() or soon))

    async def _ask(self, hint: Hint, model_id: ModelId, max_price: int) -> FoundHost:
        begun = self._clock.monotonic_seconds()
        address = await self._connect(hint)
        stream = await self._host.open_stream(hint.peer_id, [envelope.CAPABILITY_PROTOCOL])
        try:
            question = pb.CapabilityRequest(chain_id=self._contracts.deployment.chain_id)
            await stream.write_frame(envelope.encode(capability_request=question))
            frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, CAPABILITY_SECONDS)
        finally:
            await stream.reset()
        if frame is None:
            raise Unavailable("host closed the stream without an offer")
        reply = envelope.decode(frame)
        if reply.WhichOneof("body") == "error":
            raise envelope.error_of(reply.error)
        record, offer = await self.check(reply.capability, hint.peer_id, model_id)
        if offer.price_per_token > max_price:
            raise Rejected(f"price {offer.price_per_token} is over the limit {max_price}")
        seconds = round(self._clock.monotonic_seconds() - begun, 4)
        return FoundHost(record, offer, address, hint.source, seconds)

    async def _connect(self, hint: Hint) -> str:
        failure: NodeError = Unavailable(f"{hint.source} names no address that may be dialled")
        for address in hint.addresses:
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
            Rejected: expired, another price than on chain, or no proofs although we require them.
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
        if self._require_proofs and record.proof_mode != PROVEN:
            raise Rejected(f"claims rest on {record.proof_mode!r}, and require_proofs is set")
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
