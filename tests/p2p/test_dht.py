import asyncio

import pytest

from nodeapp.core.errors import InvalidRequest, NotFound, Unavailable
from nodeapp.core.ids import ModelId
from nodeapp.network.settings import KAD_PROTOCOL_ID, DhtMode
from nodeapp.wire.provider_key import any_host_key, provider_key
from tests.p2p.hosts import ECHO, echo, running, until

VALUE_KEY = "/fabstir/caps/somebody"
KEY = provider_key(ModelId("0x" + "ab" * 32), 31337)


async def test_a_renter_finds_every_host_through_a_bootstrap_node_and_reaches_it(tmp_path):
    async with (
        running(tmp_path, "bootstrap") as bootstrap,
        running(tmp_path, "host") as host,
        running(tmp_path, "renter", listen=(), dht_mode=DhtMode.CLIENT) as renter,
    ):
        host.set_handler(ECHO, echo)
        for node in (host, renter):
            assert await node.dht.join(bootstrap.addresses) >= 1
        assert await host.dht.provide(KEY)
        (provider,) = await renter.dht.find_providers(KEY)
        assert (provider.peer_id, provider.addresses) == (host.peer_id, host.addresses)
        await renter.connect(provider.addresses[0])
        stream = await renter.open_stream(provider.peer_id, [ECHO])
        await stream.write_frame(b"found you")
        assert await stream.read_frame(deadline_seconds=5) == b"found you"

        # A lookup before must not hide who came later.
        async with running(tmp_path, "late") as late:
            await late.dht.join(bootstrap.addresses)
            assert await late.dht.provide(KEY)
            found = {found.peer_id for found in await renter.dht.find_providers(KEY)}
            assert found == {host.peer_id, late.peer_id}
        assert await renter.dht.find_providers(any_host_key(31337)) == []


async def test_an_announcement_waits_for_a_peer(tmp_path):
    async with running(tmp_path, "bootstrap") as bootstrap, running(tmp_path, "host") as host:
        assert not await host.dht.provide(KEY, deadline_seconds=0.2)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            provided = tasks.create_task(host.dht.provide(KEY, deadline_seconds=15))
            await host.dht.join(bootstrap.addresses)
        assert provided.result()


async def test_joining_needs_one_of_the_bootstrap_nodes(tmp_path):
    async with running(tmp_path, "host") as host:
        async with running(tmp_path, "bootstrap") as bootstrap:
            assert await host.dht.join(["nonsense", *bootstrap.addresses]) == 1
            assert await host.dht.routing_table_size() == 1
            address = bootstrap.addresses[0]
        await until(lambda: not host.connected_peers())
        with pytest.raises(Unavailable):
            await host.dht.join([address])


async def test_only_our_own_dht_is_offered_and_a_client_offers_none(tmp_path):
    async with (
        running(tmp_path, "server") as server,
        running(tmp_path, "client", dht_mode=DhtMode.CLIENT) as client,
    ):
        assert KAD_PROTOCOL_ID in await server.protocols()
        assert not [offer for offer in await server.protocols() if "/ipfs/kad" in offer]
        assert not [offer for offer in await client.protocols() if "/kad/" in offer]
        await client.connect(server.addresses[0])
        with pytest.raises(NotFound):
            await client.open_stream(server.peer_id, ["/ipfs/kad/1.0.0"])
        stream = await client.open_stream(server.peer_id, [KAD_PROTOCOL_ID])
        await stream.reset()


async def test_a_lookup_passes_over_peers_that_are_gone(tmp_path):
    async with (
        running(tmp_path, "bootstrap") as bootstrap,
        running(tmp_path, "host") as host,
        running(tmp_path, "renter", listen=(), dht_mode=DhtMode.CLIENT) as renter,
    ):
        async with running(tmp_path, "gone") as gone:
            for node in (gone, host, renter):
                await node.dht.join(bootstrap.addresses)
            assert await gone.dht.provide(KEY)
            assert await host.dht.provide(KEY)
        await until(lambda: gone.peer_id not in bootstrap.connected_peers())
        found = {found.peer_id for found in await renter.dht.find_providers(KEY)}
        # A record outlives its peer: the renter tries the next one.
        assert host.peer_id in found


def counted(key, value):
    """A rule for tests: "<sequence>:<rest>"."""
    del key
    sequence, separator, _rest = value.partition(b":")
    if not separator or not sequence.isdigit():
        raise InvalidRequest("value has no sequence")
    return int(sequence)


async def test_the_newest_value_wins_and_a_stale_or_bad_one_never_replaces_it(tmp_path):
    rules = {"fabstir": counted}
    async with (
        running(tmp_path, "bootstrap", record_rules=rules) as bootstrap,
        running(tmp_path, "host", record_rules=rules) as host,
        running(tmp_path, "rival", record_rules=rules) as rival,
        running(
            tmp_path, "reader", listen=(), dht_mode=DhtMode.CLIENT, record_rules=rules
        ) as reader,
    ):
        for node in (host, rival, reader):
            await node.dht.join(bootstrap.addresses)
        assert await reader.dht.get_value(VALUE_KEY) is None
        taken = 0
        for _ in range(3):  # as a node does: whom nobody answered in time tries again
            taken = taken or await host.dht.put_value(VALUE_KEY, b"5:new")
        assert taken >= 1
        assert await reader.dht.get_value(VALUE_KEY) == b"5:new"
        await rival.dht.put_value(VALUE_KEY, b"4:old")
        assert await reader.dht.get_value(VALUE_KEY) == b"5:new"
        # What the reader saw before must not hide what is newer.
        await host.dht.put_value(VALUE_KEY, b"6:newer")
        assert await reader.dht.get_value(VALUE_KEY) == b"6:newer"
        with pytest.raises(InvalidRequest, match="no sequence"):
            await host.dht.put_value(VALUE_KEY, b"bad")
        with pytest.raises(InvalidRequest, match="no rule"):
            await host.dht.put_value("/other/key", b"7:x")


async def test_a_peer_without_our_rule_cannot_plant_a_value(tmp_path):
    rules = {"fabstir": counted}
    async with (
        running(tmp_path, "bootstrap", record_rules=rules) as bootstrap,
        running(tmp_path, "liar", record_rules={"fabstir": lambda _key, _value: 99}) as liar,
        running(
            tmp_path, "reader", listen=(), dht_mode=DhtMode.CLIENT, record_rules=rules
        ) as reader,
    ):
        for node in (liar, reader):
            await node.dht.join(bootstrap.addresses)
        assert await liar.dht.put_value(VALUE_KEY, b"not a value") == 0
        # The liar itself answers with it; the reader does not believe that either.
        await reader.connect(liar.addresses[0])
        assert await reader.dht.get_value(VALUE_KEY) is None
