"""A host that nobody can dial is reached through a relay, within the relay's limits."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb2

from nodeapp.core.errors import InvalidRequest, NodeError, Unavailable
from nodeapp.network.circuit import HOP, STOP, Relay, RelayLimits
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import NetworkSettings
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.reach import REACH_PROTOCOL, serve_dial_back
from nodeapp.p2p.relays import Reservations
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.addresses import is_public, tcp_endpoint
from tests.fakes.clock import FakeClock
from tests.p2p.hosts import ECHO, echo, until

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


class Three:
    """A relay, a host that listens nowhere, and who wants it."""

    def __init__(self, relay_host, hidden, asker, limits):
        self.clock = FakeClock()
        self.relay_host, self.hidden, self.asker = relay_host, hidden, asker
        self.relay = Relay(relay_host, self.clock.unix_seconds, limits)
        relay_host.set_handler(HOP, self.relay.serve)
        hidden.set_handler(ECHO, echo)
        self.relay_address = relay_host.addresses[0]
        self.circuit = f"{self.relay_address}/p2p-circuit/p2p/{hidden.peer_id}"

    async def says(self, text):
        stream = await self.asker.open_stream(self.hidden.peer_id, [ECHO])
        await stream.write_frame(text)
        return await stream.read_frame(1 << 20, deadline_seconds=10)


@asynccontextmanager
async def three(tmp_path, limits=None):
    def settings(name, listen=()):
        return NetworkSettings(identity_path=tmp_path / name, listen=listen)

    async with (
        asyncio.timeout(28),
        Libp2pHost.running(settings("relay", LISTEN), on_death=print) as relay_host,
        Libp2pHost.running(settings("hidden"), on_death=print) as hidden,
        Libp2pHost.running(settings("asker"), on_death=print) as asker,
    ):
        yield Three(relay_host, hidden, asker, limits)


async def test_a_host_that_listens_nowhere_is_spoken_to_through_a_relay(tmp_path):
    async with three(tmp_path) as net:
        until_second = await net.hidden.reserve(net.relay_address)
        assert until_second == net.clock.now + 3600
        assert net.hidden.addresses == (net.circuit,)
        assert await net.asker.connect(net.circuit) == net.hidden.peer_id
        assert net.hidden.peer_id in net.asker.connected_peers()
        for size in (0, 5, 70_000, 900_000):
            assert await net.says(bytes(size)) == bytes(size)
        assert await net.asker.connect(net.circuit) == net.hidden.peer_id


async def test_without_a_reservation_nobody_is_reached(tmp_path):
    async with three(tmp_path) as net:
        with pytest.raises(Unavailable, match="status 204"):
            await net.asker.connect(net.circuit)
        await net.hidden.reserve(net.relay_address)
        net.clock.now += 3601
        with pytest.raises(Unavailable, match="status 204"):
            await net.asker.connect(net.circuit)
        assert net.relay.reserved == frozenset()


async def test_a_relay_that_is_full_refuses_and_renews_for_whom_it_knows(tmp_path):
    async with three(tmp_path, RelayLimits(reservations=1)) as net:
        await net.hidden.reserve(net.relay_address)
        await net.hidden.reserve(net.relay_address)
        with pytest.raises(Unavailable, match="status 200"):
            await net.asker.reserve(net.relay_address)
        assert net.asker.addresses == ()


async def test_places_of_those_who_left_are_given_to_others(tmp_path):
    async with three(tmp_path, RelayLimits(reservations=1)) as net:
        await net.hidden.reserve(net.relay_address)
        await net.hidden.disconnect(net.relay_host.peer_id)
        await until(lambda: net.hidden.peer_id not in net.relay_host.connected_peers())
        await net.asker.reserve(net.relay_address)
        assert net.relay.reserved == {net.asker.peer_id}


async def test_who_is_no_relay_of_ours_is_sent_away_unheard(tmp_path):
    async with three(tmp_path) as net:
        await net.hidden.reserve(net.relay_address)
        net.hidden.give_up(net.relay_host.peer_id)

        async def listen():
            stream = await net.relay_host.open_stream(net.hidden.peer_id, [STOP])
            await stream.read_frame(deadline_seconds=5)

        with pytest.raises(Unavailable) as told:
            await listen()
        assert "no frame" not in told.value.message


async def test_circuits_are_counted_while_they_live(tmp_path):
    async with three(tmp_path, RelayLimits(circuits=1)) as net:
        await net.hidden.reserve(net.relay_address)
        await net.asker.connect(net.circuit)
        async with Libp2pHost.running(
            NetworkSettings(identity_path=tmp_path / "late", listen=()), on_death=print
        ) as late:
            with pytest.raises(Unavailable, match="status 201"):
                await late.connect(net.circuit)
            await net.asker.disconnect(net.hidden.peer_id)
            await until(lambda: not net.relay._circuits)
            await late.connect(net.circuit)


async def test_a_circuit_ends_when_its_bytes_are_used_up(tmp_path):
    async with three(tmp_path, RelayLimits(circuit_bytes=200_000)) as net:
        await net.hidden.reserve(net.relay_address)
        await net.asker.connect(net.circuit)
        assert await net.says(b"small") == b"small"
        with pytest.raises(NodeError):
            await net.says(bytes(900_000))
        await until(lambda: not net.relay._circuits)


async def test_a_circuit_ends_with_its_time(tmp_path):
    seconds, loop = 2.0, asyncio.get_running_loop()
    async with three(tmp_path, RelayLimits(circuit_seconds=seconds)) as net:
        await net.hidden.reserve(net.relay_address)
        began = loop.time()
        await net.asker.connect(net.circuit)
        assert await net.says(b"alive") == b"alive"
        assert net.relay._circuits.total() == 2, "two ends of one circuit"
        await until(lambda: net.hidden.peer_id not in net.asker.connected_peers())
        assert loop.time() - began >= seconds, "not before its time"
        await until(lambda: not net.relay._circuits)


async def test_only_relays_of_ones_own_choice_bring_connections(tmp_path):
    """Anybody may open the stream; who did not make the reservation there does not take it."""
    async with three(tmp_path) as net:
        await net.hidden.reserve(net.relay_address)
        net.hidden.give_up(net.relay_host.peer_id)
        assert net.hidden.addresses == ()
        with pytest.raises(Unavailable):
            await net.asker.connect(net.circuit)


@pytest.mark.parametrize("rest", ["", "/p2p/nonsense", "/p2p/{relay}/p2p-circuit/p2p/{relay}"])
async def test_a_circuit_address_without_one_peer_is_refused(tmp_path, rest):
    async with three(tmp_path) as net:
        rest = rest.format(relay=net.relay_host.peer_id)
        with pytest.raises((InvalidRequest, Unavailable)):
            await net.asker.connect(f"{net.relay_address}/p2p-circuit{rest}")


async def test_reservations_are_kept_renewed_and_given_up(tmp_path):
    async with three(tmp_path) as net:
        kept = Reservations((net.relay_address,), net.clock)
        await kept.look(net.hidden, is_needed=True)
        assert kept.sentence == "reachable through 1 of 1 relays"
        first = dict(net.relay._reserved)
        await kept.look(net.hidden, is_needed=True)
        assert net.relay._reserved == first
        net.clock.now += 1801
        await kept.look(net.hidden, is_needed=True)
        assert net.relay._reserved[net.hidden.peer_id] == first[net.hidden.peer_id] + 1801
        await net.hidden.disconnect(net.relay_host.peer_id)
        await until(lambda: not net.hidden.connected_peers())
        net.clock.now += 1
        await kept.look(net.hidden, is_needed=True)
        assert net.relay._reserved[net.hidden.peer_id] == first[net.hidden.peer_id] + 1802
        await kept.look(net.hidden, is_needed=False)
        assert (net.hidden.addresses, kept.sentence) == ((), "none of 1 relays takes this host")


async def test_a_relay_that_is_gone_is_told_to_the_operator(tmp_path):
    async with three(tmp_path) as net:
        nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{net.asker.peer_id}"
        kept = Reservations((nobody,), net.clock)
        await kept.look(net.hidden, is_needed=True)
        assert kept.sentence == "none of 1 relays takes this host"
    assert Reservations((), FakeClock()).sentence == ""


def test_a_relays_address_is_dialled_by_the_rules_of_its_own_and_is_no_endpoint_of_ours():
    relay = "/ip4/{}/tcp/9000/p2p/relay/p2p-circuit/p2p/hidden"
    assert is_public(relay.format("8.8.8.8"))
    assert not is_public(relay.format("192.168.1.1"))
    assert tcp_endpoint(relay.format("8.8.8.8")) is None


async def test_nobody_is_dialled_back_who_came_through_a_relay(tmp_path):
    """There is no address of its own, and "" must never become one of ours."""
    async with three(tmp_path) as net:
        admission = Admission(handshakes_per_minute=30, max_streams_per_peer=4)
        net.hidden.set_handler(REACH_PROTOCOL, lambda stream: serve_dial_back(stream, admission))
        await net.hidden.reserve(net.relay_address)
        await net.asker.connect(net.circuit)
        stream = await net.asker.open_stream(net.hidden.peer_id, [REACH_PROTOCOL])
        question = pb.DialBackRequest(ports=[22])
        await stream.write_frame(envelope.encode(dial_back_request=question))
        reply = envelope.decode(await stream.read_frame(1 << 16, deadline_seconds=10))
        assert "relayed" in envelope.error_of(reply.error).message


class Asking:
    """A stream of somebody at an address, who stays until let go."""

    def __init__(self, peer_id, address, target):
        self.remote_peer_id, self.remote_address = peer_id, address
        message = pb2.HopMessage(type=pb2.HopMessage.CONNECT)
        message.peer.id = ID.from_base58(target).to_bytes()
        self._question, self.told = message.SerializeToString(), []

    async def read_frame(self, _most, _seconds):
        return self._question

    async def write_frame(self, frame):
        self.told.append(pb2.HopMessage.FromString(frame).status)

    async def close(self):
        pass


class Slow:
    """A host that never gets through to its peers."""

    def __init__(self, peer_id):
        self.peers = frozenset([peer_id])

    def connected_peers(self):
        return self.peers

    async def open_stream(self, _peer_id, _protocols):
        await asyncio.get_running_loop().create_future()


async def test_one_subnet_does_not_get_every_circuit():
    targets = [str(ID(bytes([0, 1, number]))) for number in range(9)]
    relay = Relay(Slow(targets[0]), lambda: 0.0, RelayLimits(circuits_per_subnet=2))
    relay._reserved = dict.fromkeys(targets, 60.0)

    async def ask(tasks, number, address):
        asking = Asking(f"asker {number}", address, targets[number])
        task = tasks.create_task(relay.serve(asking))
        for _ in range(5):
            await asyncio.sleep(0)
        return asking.told, task

    async with asyncio.TaskGroup() as tasks:
        asked = [await ask(tasks, number, f"8.8.8.{number}") for number in range(3)]
        other = await ask(tasks, 4, "9.9.9.9")
        assert [told for told, _ in asked] == [[], [], [pb2.Status.RESOURCE_LIMIT_EXCEEDED]]
        assert other[0] == []
        for _told, task in (*asked, other):
            task.cancel()
    assert not relay._circuits
    assert not relay._subnets
