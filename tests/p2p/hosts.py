"""Real libp2p hosts on loopback for the tests of this folder."""

import asyncio
import contextlib
import time

from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode, NetworkSettings

ECHO = "/fabstir/test-echo/1.0.0"


def settings(directory, name, **changes):
    return NetworkSettings(identity_path=directory / f"{name}.key", **changes)


@contextlib.asynccontextmanager
async def running(directory, name, **changes):
    """A host whose unasked end fails the test that runs it."""
    deaths = []
    async with Libp2pHost.running(
        settings(directory, name, **changes), on_death=deaths.append
    ) as host:
        yield host
    assert deaths == []


@contextlib.asynccontextmanager
async def pair(directory):
    """(client, server), connected; the server echoes."""
    async with (
        running(directory, "server") as server,
        running(directory, "client", listen=(), dht_mode=DhtMode.CLIENT) as client,
    ):
        server.set_handler(ECHO, echo)
        await client.connect(server.addresses[0])
        yield client, server


async def send_raw(stream, chunk):
    """Bytes that are not our framing."""
    stream._pump.outbox.put(chunk)
    stream._bridge.post(stream._pump.send)


async def echo(stream):
    while (frame := await stream.read_frame(1 << 20)) is not None:
        await stream.write_frame(frame)


async def until(condition, seconds=10.0):
    """Poll an observable fact of another thread or process, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def served(client, server, protocol="/fabstir/test/1.0.0"):
    """(client's stream, server's stream): the server's end in the test's own hands."""
    arrived = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold(stream):
        arrived.set_result(stream)
        await done.wait()

    server.set_handler(protocol, hold)
    stream = await client.open_stream(server.peer_id, [protocol])
    async with asyncio.timeout(10):
        theirs = await arrived
    try:
        yield stream, theirs
    finally:
        done.set()
        stream.abandon()
        theirs.abandon()
