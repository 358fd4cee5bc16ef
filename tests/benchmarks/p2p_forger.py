"""A stranger that lies about capabilities: by DHT, by gossip and when it is asked."""

from __future__ import annotations

import asyncio
import random
import time
from multiprocessing.connection import Connection

import msgspec

from nodeapp.core.errors import NodeError
from nodeapp.evm.accounts import new_wallet
from nodeapp.network.host import Libp2pHost
from nodeapp.network.identity import Identity, load_or_create_identity
from nodeapp.network.streams import Stream
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import (
    DHT_NAMESPACE,
    GOSSIP_TOPIC,
    CapabilityRecord,
    decode_record,
    dht_key,
    encode_record,
    peer_signed_bytes,
)
from nodeapp.wire.provider_key import provider_key
from nodeapp.wire.signed import capability_digest, domain_separator
from tests.benchmarks.p2p_backend import CHAIN_ID, MARKET, MODEL
from tests.benchmarks.p2p_market import Listed
from tests.benchmarks.p2p_strangers import stranger


def signed(record: CapabilityRecord, identity: Identity) -> pb.Capability:
    """By a wallet that no registry lists, and by our own peer."""
    wallet = new_wallet()
    whole = msgspec.structs.replace(
        record, wallet=wallet.address, public_key=wallet.public_key, peer_id=identity.peer_id
    )
    encoded = encode_record(whole)
    digest = capability_digest(domain_separator(CHAIN_ID, MARKET), encoded)
    return pb.Capability(
        record=encoded,
        signature=wallet.sign_digest(digest),
        peer_signature=identity.sign(peer_signed_bytes(encoded)),
    )


def forger(pipe: Connection, address: str, known: str, victim: Listed, seconds: float) -> None:
    """Forged and expired records by DHT, by gossip and in answers; stays a provider of the model."""

    async def forge() -> None:
        topics = {GOSSIP_TOPIC: lambda _message: None}
        rules = {DHT_NAMESPACE: lambda _key, _value: int(time.time())}
        async with stranger(address, topics=topics, record_rules=rules) as host:
            identity = load_or_create_identity(host._settings.identity_path)
            true = await _told_by(host, victim.address)
            record = decode_record(true.record)
            mine = msgspec.structs.replace(record, addresses=host.addresses)
            expired = signed(
                msgspec.structs.replace(mine, not_after=int(time.time()) - 10), identity
            )
            forged = pb.Capability()
            forged.CopyFrom(true)
            forged.signature = bytes(reversed(true.signature))
            my_key, their_key = dht_key(host.peer_id), dht_key(victim.peer_id)
            values = {
                "expired": (my_key, expired.SerializeToString()),
                "forged": (their_key, forged.SerializeToString()),
                "another's under my key": (my_key, true.SerializeToString()),
                "mine under another's key": (their_key, signed(mine, identity).SerializeToString()),
                "oversize": (my_key, bytes(100_000)),
                # Valid, if of no use to anybody: the wallet is in no registry.
                "control: true": (my_key, signed(mine, identity).SerializeToString()),
            }
            await host.dht.join([known])
            taken = {name: await _taken(host, name, *pair) for name, pair in values.items()}
            for value in (forged.SerializeToString(), expired.SerializeToString(), b"\xff" * 500):
                await host.gossip.publish(GOSSIP_TOPIC, value)

            async def lie(stream: Stream) -> None:
                await stream.read_frame(1024, deadline_seconds=10)
                lies = (true, expired, forged, signed(mine, identity))
                await stream.write_frame(envelope.encode(capability=random.choice(lies)))

            host.set_handler(envelope.CAPABILITY_PROTOCOL, lie)
            is_provider = await host.dht.provide(provider_key(MODEL, CHAIN_ID))
            listing = await _listed_by(host, known)
            pipe.send(
                {
                    "taken": taken,
                    "peer_id": host.peer_id,
                    "is_provider": is_provider,
                    "heard": sum(decode_record(c.record).peer_id == host.peer_id for c in listing),
                    "listed": len(listing),
                }
            )
            await asyncio.sleep(seconds)

    asyncio.run(forge())


async def _told_by(host: Libp2pHost, address: str) -> pb.Capability:
    """A node's own record."""
    peer = await host.connect(address)
    stream = await host.open_stream(peer, [envelope.CAPABILITY_PROTOCOL])
    question = pb.CapabilityRequest(chain_id=CHAIN_ID)
    await stream.write_frame(envelope.encode(capability_request=question))
    return envelope.decode(await stream.read_frame(deadline_seconds=10) or b"").capability


async def _taken(host: Libp2pHost, name: str, key: bytes, value: bytes) -> int:
    """By how many peers of the DHT."""
    try:
        return await host.dht.put_value(key, value)
    except NodeError as error:
        print(name, error)
        return 0


async def _listed_by(host: Libp2pHost, known: str) -> list[pb.Capability]:
    """What a bootstrap node has heard by gossip."""
    peer = await host.connect(known)
    stream = await host.open_stream(peer, [envelope.CAPABILITY_PROTOCOL])
    question = pb.CapabilityRequest(model_id=MODEL, chain_id=CHAIN_ID)
    await stream.write_frame(envelope.encode(capability_request=question))
    frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, 10)
    return list(envelope.decode(frame or b"").capability_list.capabilities)
