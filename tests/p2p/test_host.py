import asyncio
import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode
from tests.p2p.hosts import ECHO, echo, pair, running, settings, until


def multistream(port, *proposals):
    """What a TCP peer is answered before any encryption; proposals are protocol ids."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for text in ("/multistream/1.0.0", *proposals):
            line = text.encode() + b"\n"
            connection.sendall(bytes((len(line),)) + line)
        answer = b""
        while answer.count(b"\n") < 1 + len(proposals):
            received = connection.recv(4096)
            if not received:
                break
            answer += received
    return [line[1:] for line in answer.split(b"\n") if line]


def port_of(host):
    return int(host.addresses[0].split("/")[4])


async def test_peers_see_each_other_and_a_disconnect(tmp_path):
    async with pair(tmp_path) as (client, server):
        assert client.connected_peers() == {server.peer_id}
        await until(lambda: server.connected_peers() == {client.peer_id})
        known = server.connected_peers()
        assert await server.peers_changed(known, 0.05) == known
        await client.disconnect(server.peer_id)
        assert await server.peers_changed(known, 10) == frozenset()
        await until(lambda: not client.connected_peers() and not server.connected_peers())


async def test_only_a_bootstrap_node_that_comes_or_goes_is_a_reason_to_announce_again(tmp_path):
    async with running(tmp_path, "node") as node, running(tmp_path, "bootstrap") as bootstrap:
        await node.dht.join((bootstrap.addresses[0],))
        known = node.ways_in()
        assert known == {bootstrap.peer_id}
        async with running(tmp_path, "renter", listen=(), dht_mode=DhtMode.CLIENT) as renter:
            await renter.connect(node.addresses[0])
            await until(lambda: renter.peer_id in node.connected_peers())
            assert await node.ways_in_changed(known, 0.05) == known
        await until(lambda: renter.peer_id not in node.connected_peers())
        await bootstrap.disconnect(node.peer_id)
        assert await node.ways_in_changed(known, 10) == frozenset()


async def test_without_a_bootstrap_node_every_peer_is_a_way_in(tmp_path):
    async with pair(tmp_path) as (client, server):
        assert client.ways_in() == {server.peer_id}


async def test_a_peer_that_came_back_is_dialled_at_once(tmp_path):
    async with running(tmp_path, "client") as client:
        async with running(tmp_path, "server") as server:
            address = server.addresses[0]
            await client.connect(address)
        await until(lambda: not client.connected_peers())
        with pytest.raises(Unavailable):
            await client.connect(address)
        listen = address.partition("/p2p/")[0]
        async with running(tmp_path, "server", listen=(listen,)) as server:
            server.set_handler(ECHO, echo)
            await client.connect(address)
            stream = await client.open_stream(server.peer_id, [ECHO])
            await stream.write_frame(b"again")
            assert await stream.read_frame(deadline_seconds=5) == b"again"


async def test_bad_addresses_are_named(tmp_path):
    async with running(tmp_path, "client") as client:
        for address in ("", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/zz"):
            with pytest.raises(InvalidRequest):
                await client.connect(address)
        with pytest.raises(InvalidRequest, match="own address"):
            await client.connect(client.addresses[0])
        with pytest.raises(InvalidRequest, match="not a peer id"):
            await client.open_stream("not a peer id", [ECHO])


async def test_a_second_host_with_the_same_identity_is_refused(tmp_path):
    async with running(tmp_path, "node"):
        with pytest.raises(ExceptionGroup) as caught:
            async with running(tmp_path, "node"):
                pytest.fail("two hosts with one identity")
        assert "another process" in str(caught.value.exceptions[0])


async def test_a_taken_port_is_refused(tmp_path):
    async with running(tmp_path, "first") as first:
        taken = first.addresses[0].partition("/p2p/")[0]
        with pytest.raises(ExceptionGroup) as caught:
            async with running(tmp_path, "second", listen=(taken,)):
                pytest.fail("two hosts on one port")
        assert isinstance(caught.value.exceptions[0], Unavailable)
        assert taken in str(caught.value.exceptions[0])


async def test_stop_is_quick_and_leaves_no_thread(tmp_path):
    async with pair(tmp_path) as (client, server):
        await client.open_stream(server.peer_id, [ECHO])
        async with asyncio.timeout(4):
            await server.stop()
            await client.stop()
        await server.stop()
        assert not [t for t in threading.enumerate() if t.name == "libp2p-trio"]
        with pytest.raises(Unavailable):
            await client.connect(server.addresses[0])


async def test_the_end_of_the_trio_thread_is_reported_once(tmp_path):
    deaths = []

    def crash():
        raise RuntimeError("planted")

    async with Libp2pHost.running(settings(tmp_path, "node"), on_death=deaths.append) as host:
        host._bridge.post(crash)
        await until(lambda: deaths)
        with pytest.raises(Unavailable):
            await host.protocols()
    assert len(deaths) == 1
    assert "planted" in deaths[0]


async def test_an_announced_address_replaces_the_listening_one(tmp_path):
    public = "/ip4/203.0.113.7/tcp/9000"
    async with running(tmp_path, "node", announce=(public,)) as host:
        assert host.addresses == (f"{public}/p2p/{host.peer_id}",)


async def test_only_noise_is_offered(tmp_path):
    async with running(tmp_path, "node") as host:
        port = port_of(host)
        for refused in ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"):
            assert (await asyncio.to_thread(multistream, port, refused))[1:] == [b"na"]
        assert (await asyncio.to_thread(multistream, port, "/noise"))[1:] == [b"/noise"]


async def test_bytes_that_are_not_libp2p_do_not_disturb_a_peer(tmp_path):
    async with pair(tmp_path) as (client, server):
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 20)
            stream = await client.open_stream(server.peer_id, [ECHO])
            await stream.write_frame(b"hello")
            assert await stream.read_frame(deadline_seconds=5) == b"hello"


async def test_cancelling_a_call_cancels_it_on_the_trio_thread(tmp_path):
    import trio

    async with running(tmp_path, "node") as host:
        ended = threading.Event()

        async def forever():
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        with pytest.raises(Unavailable, match=r"wait: not done in 0\.05 s"):
            await host._bridge.call("wait", forever, 0.05)
        await until(ended.is_set)


def test_importing_the_adapter_does_not_import_libp2p():
    code = "import nodeapp.network.host, sys; raise SystemExit('libp2p' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


async def test_idle_sockets_of_one_subnet_leave_the_other_slots_free(tmp_path, monkeypatch):
    monkeypatch.setattr("nodeapp.network.library.subnet_of", lambda address: "127.0.0.0/24")
    async with running(tmp_path, "server", max_connections=20, max_per_subnet=4) as server:
        host, port = server.addresses[0].split("/")[2], int(server.addresses[0].split("/")[4])
        sockets = [await asyncio.open_connection(host, port) for _ in range(12)]
        greeted = await asyncio.gather(*(_is_greeted(reader) for reader, _writer in sockets))
        assert sum(greeted) == 4
        for _reader, writer in sockets:
            writer.close()
        # Their places are free again as soon as they are gone.
        async with running(tmp_path, "client", listen=(), dht_mode=DhtMode.CLIENT) as client:
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(Unavailable):
                        await client.connect(server.addresses[0])
                        return


async def _is_greeted(reader):
    """Whether the node keeps the connection: what it does not keep it closes at once."""
    try:
        async with asyncio.timeout(1.5):
            return await reader.read(100) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


async def test_the_place_of_a_connection_that_ended_is_free_again(tmp_path):
    async with (
        running(tmp_path, "server", max_connections=4) as server,
        running(tmp_path, "client", listen=(), dht_mode=DhtMode.CLIENT) as client,
    ):
        for _ in range(8):
            await client.connect(server.addresses[0])
            await client.disconnect(server.peer_id)
            await until(lambda: not server.connected_peers())
