"""Whether others can reach a host, as told by peers that dial back."""

import asyncio

import pytest

from nodeapp.core.errors import ProtocolViolation
from nodeapp.network.settings import DhtMode
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.reach import REACH_PROTOCOL, Answer, ask_peers, judge, serve_dial_back
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from tests.p2p.hosts import running
from tests.world import World, until

PUBLIC = "/ip4/8.8.8.8/tcp/9000/p2p/x"
PRIVATE = "/ip4/192.168.1.5/tcp/9000/p2p/x"


def serve(host):
    admission = Admission(handshakes_per_minute=30, max_streams_per_peer=4)
    host.set_handler(REACH_PROTOCOL, lambda stream: serve_dial_back(stream, admission))


async def test_a_host_that_listens_is_reachable_and_one_that_does_not_is_told(tmp_path):
    async with (
        running(tmp_path, "peer") as peer,
        running(tmp_path, "host") as host,
        running(tmp_path, "closed", announce=("/ip4/127.0.0.1/tcp/1",)) as closed,
    ):
        serve(peer)
        for asker in (host, closed):
            await asker.connect(peer.addresses[0])
        good = await ask_peers(host, [peer.peer_id])
        assert good.is_reachable
        assert good.sentence.startswith("1 of 1 peers reach 127.0.0.1 port ")
        bad = await ask_peers(closed, [peer.peer_id])
        assert bad.is_reachable is False
        assert "cannot reach 127.0.0.1 port 1 (connection refused)" in bad.sentence
        assert "open TCP port 1 in the firewall" in bad.sentence


async def test_something_else_behind_the_port_is_not_a_libp2p_node(tmp_path):
    async def other(reader, writer):
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        running(tmp_path, "peer") as peer,
        running(tmp_path, "host", announce=(f"/ip4/127.0.0.1/tcp/{port}",)) as host,
    ):
        serve(peer)
        await host.connect(peer.addresses[0])
        found = await ask_peers(host, [peer.peer_id])
        assert found.is_reachable is False
        assert "no libp2p node answers" in found.sentence


async def test_a_peer_that_knows_no_dial_back_leaves_it_open(tmp_path):
    async with (
        running(tmp_path, "old") as old,
        running(tmp_path, "host") as host,
    ):
        await host.connect(old.addresses[0])
        assert (await ask_peers(host, [old.peer_id])).is_reachable is None


@pytest.mark.parametrize("ports", [[], [0], [70_000], [1, 2, 3, 4, 5]])
async def test_a_question_with_other_ports_is_refused(tmp_path, ports):
    async with (
        running(tmp_path, "peer") as peer,
        running(tmp_path, "asker", listen=(), dht_mode=DhtMode.CLIENT) as asker,
    ):
        serve(peer)
        await asker.connect(peer.addresses[0])
        stream = await asker.open_stream(peer.peer_id, [REACH_PROTOCOL])
        await stream.write_frame(envelope.encode(dial_back_request=pb.DialBackRequest(ports=ports)))
        reply = envelope.decode(await stream.read_frame(deadline_seconds=10))
        assert reply.error.code == ProtocolViolation.code


def answer(address="8.8.8.8", ports=(9000,), reason=""):
    return Answer("peer", address, frozenset(ports), ((9000, reason),))


def test_the_sentence_says_what_to_do():
    assert judge([answer()], [PUBLIC]).is_reachable
    behind = judge([answer()], [PRIVATE])
    assert behind.is_reachable is False
    assert 'set p2p.announce = ["/ip4/8.8.8.8/tcp/9000"]' in behind.sentence
    moved = judge([answer(address="9.9.9.9")], [PUBLIC])
    assert moved.is_reachable
    assert "8.8.8.8 is announced: check p2p.announce" in moved.sentence
    blocked = judge([answer(ports=(), reason="timed out")], [PUBLIC])
    assert "8.8.8.8 port 9000 (timed out)" in blocked.sentence
    assert judge([], [PUBLIC]).is_reachable is None


def test_a_running_node_knows_that_it_is_reachable(world: World):
    until(lambda: world.metric("p2p", "fabstir_p2p_reachable") == 1, "reachable", 30)
