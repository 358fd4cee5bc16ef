"""Offers heard by gossip: who is kept, who is told, and that a renter finds hosts by them alone."""

import msgspec
import pytest

from nodeapp.core.errors import NodeError, Rejected
from nodeapp.network.identity import identity_from_seed
from nodeapp.network.settings import DhtMode
from nodeapp.p2p import directory as module
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.directory import Directory, serve_capability
from nodeapp.renter.sources import Sources, each_hint
from nodeapp.renter.standing import Standings
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import GOSSIP_TOPIC, encode_record, peer_signed_bytes
from nodeapp.wire.signed import capability_digest, domain_separator
from tests.fakes.clock import FakeClock
from tests.p2p.hosts import running, until
from tests.security.test_capability import CHAIN_ID, MODEL, NOW, WALLET, record
from tests.world import World


def offer(seed, **changes):
    """A published offer of another peer with the same wallet."""
    identity = identity_from_seed(bytes([seed]) * 32)
    whole = msgspec.structs.replace(record(peer_id=identity.peer_id), **changes)
    encoded = encode_record(whole)
    separator = domain_separator(whole.chain_id, whole.marketplace)
    return pb.Capability(
        record=encoded,
        signature=WALLET.sign_digest(capability_digest(separator, encoded)),
        peer_signature=identity.sign(peer_signed_bytes(encoded)),
    ).SerializeToString()


@pytest.fixture
def clock():
    return FakeClock(NOW)


@pytest.fixture
def directory(clock):
    return Directory(clock.unix_seconds)


def test_only_news_is_passed_on(directory):
    directory.take(offer(1))
    with pytest.raises(Rejected, match="not news"):
        directory.accept(offer(1))
    with pytest.raises(Rejected, match="not news"):
        directory.accept(offer(1, sequence=NOW + 4))
    directory.take(offer(1, sequence=NOW + 5, free_slots=1))
    directory.take(offer(1, sequence=NOW + 1, free_slots=3))
    assert len(directory) == 1
    (found,) = directory.sellers(MODEL, CHAIN_ID)
    assert found.SerializeToString() == offer(1, sequence=NOW + 5, free_slots=1)


def test_what_is_not_valid_is_neither_kept_nor_passed_on(directory):
    forged = pb.Capability.FromString(offer(1))
    forged.peer_signature = bytes(64)
    for bad in (
        b"",
        b"\xff" * 100,
        forged.SerializeToString(),
        offer(1, not_after=NOW - 1),
        offer(1, not_after=NOW + 100_000),
    ):
        with pytest.raises(NodeError):
            directory.accept(bad)
        directory.take(bad)
    assert len(directory) == 0


def test_it_is_bounded_and_tells_sellers_of_the_model_that_sell_now(directory, clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_RECORDS", 3)
    for seed in range(1, 6):
        directory.take(offer(seed))
    assert len(directory) == 3
    assert len(directory.sellers(MODEL, CHAIN_ID)) == 3
    assert directory.sellers("0x" + "99" * 32, CHAIN_ID) == []
    assert directory.sellers(MODEL, CHAIN_ID + 1) == []
    clock.now += 3601
    assert directory.sellers(MODEL, CHAIN_ID) == []


async def test_a_renter_finds_a_host_by_gossip_alone(tmp_path, clock):
    heard = Directory(clock.unix_seconds)
    topics = {GOSSIP_TOPIC: heard.accept}
    admission = Admission(handshakes_per_minute=30, max_streams_per_peer=4)
    async with (
        running(tmp_path, "bootstrap", topics=topics) as bootstrap,
        running(tmp_path, "host", topics={GOSSIP_TOPIC: lambda _message: None}) as host,
        running(tmp_path, "renter", listen=(), dht_mode=DhtMode.CLIENT) as renter,
    ):
        bootstrap.gossip.listen(GOSSIP_TOPIC, heard.take)
        bootstrap.set_handler(
            envelope.CAPABILITY_PROTOCOL,
            lambda stream: serve_capability(stream, admission, heard, None),
        )
        await host.connect(bootstrap.addresses[0])
        await until(lambda: bootstrap.peer_id in host.connected_peers())
        for number in range(100):
            await host.gossip.publish(GOSSIP_TOPIC, offer(7, sequence=NOW + 10 * number))
            if len(heard):
                break

        class Contracts:
            class deployment:  # noqa: N801
                chain_id = CHAIN_ID

        sources = Sources(renter, Contracts(), bootstrap.addresses, Standings.load(tmp_path), clock)
        hints = []
        assert await each_hint(sources.all()["gossip 1"], MODEL, hints.append) == ""
        (hint,) = hints
        assert hint.peer_id == identity_from_seed(b"\x07" * 32).peer_id
        assert hint.addresses == record().addresses


def test_the_bootstrap_node_of_a_running_world_knows_the_host(world: World, tmp_path):
    import asyncio

    values = world.renter_values

    async def ask():
        async with running(tmp_path, "asker", listen=(), dht_mode=DhtMode.CLIENT) as asker:
            peer = await asker.connect(values["bootstrap"][0])
            async with asyncio.timeout(30):
                while True:
                    stream = await asker.open_stream(peer, [envelope.CAPABILITY_PROTOCOL])
                    request = pb.CapabilityRequest(
                        model_id=values["model_id"], chain_id=values["chain_id"]
                    )
                    await stream.write_frame(envelope.encode(capability_request=request))
                    reply = envelope.decode(await stream.read_frame(deadline_seconds=10))
                    await stream.reset()
                    if reply.capability_list.capabilities:
                        return len(reply.capability_list.capabilities)
                    await asyncio.sleep(0.5)

    assert asyncio.run(ask()) == 1
