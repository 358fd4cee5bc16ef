"""Where a renter learns of hosts: DHT, chain registry, gossip, local network, its own memory.

Any one of them is enough. What they say is a hint to be checked: a peer id and where to dial it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from nodeapp.core.errors import InvalidRequest, NodeError, NotFound, leaves
from nodeapp.core.ids import Address, ModelId, PeerId
from nodeapp.evm.contracts import Contracts
from nodeapp.network.host import Libp2pHost
from nodeapp.network.mdns import LanPeers
from nodeapp.renter.standing import Standings
from nodeapp.security.capability import check_capability, decode_published
from nodeapp.service.clock import Clock
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.addresses import dialable, is_public
from nodeapp.wire.capability import MAX_LISTED, CapabilityRecord, dht_key
from nodeapp.wire.peer_id import public_key_of
from nodeapp.wire.provider_key import provider_key

MAX_ADDRESSES = 8
LAN = "mdns"
LAN_SECONDS = 4.0
LIST_SECONDS = 5.0
READ_AT_ONCE = 8
"""Registrations; each is a read of the chain."""


@dataclass(frozen=True, slots=True)
class Hint:
    """A peer that may sell the model."""

    peer_id: PeerId
    addresses: tuple[str, ...]
    source: str


class RegisteredPeer(msgspec.Struct, frozen=True):
    """`libp2p` of a registration's metadata; other keys are the SDK's."""

    peer_id: str = msgspec.field(default="", name="peerId")
    addresses: tuple[str, ...] = ()


class RegisteredMetadata(msgspec.Struct, frozen=True):
    """What we read of a registration's metadata."""

    libp2p: RegisteredPeer = RegisteredPeer()


Source = Callable[[ModelId], AsyncIterator[Hint]]


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything there is to ask."""

    host: Libp2pHost
    contracts: Contracts
    bootstrap: tuple[str, ...]
    standings: Standings
    clock: Clock
    lan: LanPeers | None = field(default=None, kw_only=True)
    """Who is heard on the local network; None: nobody is listened for."""

    @property
    def is_private(self) -> bool:
        """Whether private addresses may be dialled."""
        return is_private_network(self.bootstrap)

    def all(self) -> Mapping[str, Source]:
        """By name; what a silent bootstrap node heard must not be waited for by the others'."""
        gossip = {
            f"gossip {place}": partial(self._from_gossip, address)
            for place, address in enumerate(self.bootstrap, 1)
        }
        lan: dict[str, Source] = (
            {} if self.lan is None else {LAN: partial(self._from_lan, self.lan)}
        )
        return {
            "memory": self._from_memory,
            "dht": self._from_dht,
            "registry": self._from_registry,
            **gossip,
            **lan,
        }

    def allowed(self, hint: Hint) -> Hint:
        """The hint without the addresses that must not be dialled."""
        is_private = self.is_private or hint.source == LAN
        kept = dialable(hint.addresses, private=is_private)[:MAX_ADDRESSES]
        return Hint(hint.peer_id, kept, hint.source)

    async def published(self, peer_id: PeerId) -> tuple[str, ...]:
        """Addresses in the record that the peer keeps in the DHT; none without one."""
        value = await self.host.dht.get_value(dht_key(peer_id))
        if value is None:
            return ()
        record = check_capability(decode_published(value), self.clock.unix_seconds())
        return record.addresses if record.peer_id == peer_id else ()

    async def _from_memory(self, _model_id: ModelId) -> AsyncIterator[Hint]:
        for peer_id, addresses in self.standings.peers():
            yield Hint(peer_id, addresses, "memory")

    async def _from_lan(self, lan: LanPeers, _model_id: ModelId) -> AsyncIterator[Hint]:
        async for peer_id, addresses in lan.each(LAN_SECONDS):
            yield Hint(peer_id, addresses, LAN)

    async def _from_dht(self, model_id: ModelId) -> AsyncIterator[Hint]:
        await self.host.dht.join(self.bootstrap)
        key = provider_key(model_id, self.contracts.deployment.chain_id)
        # The whole lookup may wait for peers that are gone; what neighbours know comes at once.
        for connected_only in (True, False):
            found = await self.host.dht.find_providers(key, connected_only=connected_only)
            for provider in found:
                addresses = provider.addresses
                if not addresses and not connected_only:
                    addresses = await self.published(provider.peer_id)
                if addresses:
                    yield Hint(provider.peer_id, addresses, "dht")

    async def _from_registry(self, model_id: ModelId) -> AsyncIterator[Hint]:
        wallets = list(await self.contracts.nodes_for_model(model_id))
        # In order of registration everybody would rent from the first hosts only.
        secrets.SystemRandom().shuffle(wallets)
        for first in range(0, len(wallets), READ_AT_ONCE):
            for hint in await self._registered_of(wallets[first : first + READ_AT_ONCE]):
                yield hint

    async def _from_gossip(self, address: str, model_id: ModelId) -> AsyncIterator[Hint]:
        """What a bootstrap node heard; it can leave somebody out but not make one up."""
        for record in await self._heard_by(address, model_id):
            yield Hint(record.peer_id, record.addresses, "gossip")

    async def _heard_by(self, address: str, model_id: ModelId) -> list[CapabilityRecord]:
        peer_id = await self.host.connect(address)
        stream = await self.host.open_stream(peer_id, [envelope.CAPABILITY_PROTOCOL])
        question = pb.CapabilityRequest(
            model_id=model_id, chain_id=self.contracts.deployment.chain_id
        )
        try:
            await stream.write_frame(envelope.encode(capability_request=question))
            frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, LIST_SECONDS)
        finally:
            await stream.reset()
        listed = envelope.decode(frame or b"").capability_list.capabilities
        now = self.clock.unix_seconds()
        return [check_capability(capability, now) for capability in listed[:MAX_LISTED]]

    async def _registered_of(self, wallets: Sequence[Address]) -> list[Hint]:
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self._registered(wallet)) for wallet in wallets]
        except* NodeError as group:
            raise leaves(group)[0] from None
        return [hint for task in asked if (hint := task.result()) is not None]

    async def _registered(self, wallet: Address) -> Hint | None:
        try:
            node = await self.contracts.node(wallet)
            said = msgspec.json.decode(node.metadata, type=RegisteredMetadata).libp2p
            public_key_of(said.peer_id)
        except (NotFound, InvalidRequest, msgspec.DecodeError):
            return None  # sells over other protocols only
        return Hint(PeerId(said.peer_id), said.addresses, "registry")


def is_private_network(bootstrap: tuple[str, ...]) -> bool:
    """A network is a local one if no bootstrap node has a public address, or a name."""
    return not any(is_public(address) or "/dns" in address for address in bootstrap)


async def each_hint(source: Source, model_id: ModelId, take: Callable[[Hint], None]) -> str:
    """Hand every hint of a source on; its trouble, "" for none."""
    try:
        async for hint in source(model_id):
            take(hint)
    except NodeError as error:
        return error.message
    return ""
