"""The programs of the campaign that misbehave; each says over its pipe what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from nodeapp.core.errors import NodeError, leaves
from nodeapp.core.ids import JobId
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode, NetworkSettings
from nodeapp.renter.link import open_link
from nodeapp.renter.record import SessionHead
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.provider_key import provider_key
from tests.benchmarks.p2p_backend import CHAIN_ID, MARKET, MODEL, renter_wallet
from tests.benchmarks.p2p_market import PORT, Listed
from tests.p2p.hosts import send_raw

GREETING = b"\x13/multistream/1.0.0\n"


@asynccontextmanager
async def stranger(address: str = "", **changes: object) -> AsyncIterator[Libp2pHost]:
    """A libp2p host with a new identity; with an address it can be dialled."""
    with tempfile.TemporaryDirectory(prefix="fbs") as text:
        network = NetworkSettings(
            identity_path=Path(text) / "identity.key",
            listen=(f"/ip4/{address}/tcp/0",) if address else (),
            dht_mode=DhtMode.SERVER if address else DhtMode.CLIENT,
        )
        network = replace(network, **changes)  # type: ignore[arg-type]
        async with Libp2pHost.running(network, on_death=sys.exit) as host:
            yield host


def idle_sockets(
    pipe: Connection, target: str, count: int, seconds: float, port: int = PORT
) -> None:
    """Connections that say nothing; the ones that the node closes are opened again at once."""
    opened = closed = 0
    held: list[socket.socket] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for one in list(held):
            try:
                is_over = one.recv(4096, socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                continue
            except OSError:
                is_over = True
            if is_over:
                closed += 1
                held.remove(one)
                one.close()
        while len(held) < count:
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect((target, port))
            held.append(one)
            opened += 1
        time.sleep(0.2)
    pipe.send({"opened": opened, "closed": closed})


def _garbage_by_turn(rng: random.Random) -> dict[str, Callable[[int], bytes]]:
    """What is sent at each turn, from 0 on."""

    def endless(head: bytes, chunk: bytes) -> Callable[[int], bytes]:
        return lambda turn: head if turn == 0 else chunk

    return {
        "http request": lambda turn: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" if turn == 0 else b"",
        "5 kB of noise": lambda turn: rng.randbytes(5000) if turn == 0 else b"",
        "endless varint": endless(GREETING, b"\xff" * 4096),
        "endless varint without greeting": endless(b"", b"\xff" * 4096),
        "length 2^63": lambda turn: GREETING + b"\x80" * 9 + b"\x01" if turn == 0 else b"",
        "noise handshake of garbage": lambda turn: (
            GREETING + b"\x07/noise\n" + b"\xff\xff" + rng.randbytes(65535) if turn == 0 else b""
        ),
        "a byte a second": lambda turn: GREETING[turn : turn + 1],
    }


def garbage(pipe: Connection, target: str, seconds: float, seed: int, port: int = PORT) -> None:
    """Raw bytes of every bad sort on connections of their own: how long each was listened to."""
    sorts = _garbage_by_turn(random.Random(seed))

    async def one(make: Callable[[int], bytes]) -> float:
        begun = time.monotonic()
        _reader, writer = await asyncio.open_connection(target, port)
        turn = 0
        try:
            async with asyncio.timeout(seconds):
                reader_ended = asyncio.get_running_loop().create_task(_reader.read(-1))
                while not reader_ended.done():
                    writer.write(make(turn))
                    await writer.drain()
                    turn += 1
                    await asyncio.sleep(1.0 if turn > 20 else 0.2)
        except TimeoutError:
            return -1.0
        except OSError:
            pass
        finally:
            writer.close()
        return time.monotonic() - begun

    async def all_of_them() -> None:
        found: dict[str, float] = {}

        async def measure(name: str, make: Callable[[int], bytes]) -> None:
            found[name] = await one(make)

        async with asyncio.TaskGroup() as tasks:
            for name, make in sorts.items():
                tasks.create_task(measure(name, make))
        pipe.send(found)

    asyncio.run(all_of_them())


def rude_streams(pipe: Connection, target: str) -> None:
    """Garbage inside streams of every protocol of ours: what each peer was told."""
    protocols = (
        envelope.INFERENCE_PROTOCOL,
        envelope.CAPABILITY_PROTOCOL,
        envelope.RESULTS_PROTOCOL,
    )
    sorts = {
        "endless varint": b"\xff" * 40_000,
        "length 2^63": b"\x80" * 9 + b"\x01",
        "no message": b"\x05\xff\xff\xff\xff\xff",
        "wrong message": None,
    }

    async def one(protocol: str, raw: bytes | None) -> str:
        async with stranger() as host:
            peer = await host.connect(target)
            stream = await host.open_stream(peer, [protocol])
            if raw is None:
                await stream.write_frame(envelope.encode(welcome=pb.Welcome(version=1)))
            else:
                await send_raw(stream, raw)
            try:
                frame = await stream.read_frame(deadline_seconds=20)
            except NodeError:
                return "stream reset"
            if frame is None:
                return "stream closed"
            message = envelope.decode(frame)
            return f"error {message.error.code}" if message.WhichOneof("body") == "error" else "?"

    async def all_of_them() -> None:
        said: Counter[str] = Counter()

        async def count(protocol: str, raw: bytes | None) -> None:
            try:
                said[await one(protocol, raw)] += 1
            except* NodeError as group:
                said[f"not let in ({leaves(group)[0].code})"] += 1

        for protocol in protocols:
            for raw in sorts.values():
                await count(protocol, raw)
        pipe.send(dict(said))

    asyncio.run(all_of_them())


def stalled_readers(
    pipe: Connection, listed: Listed, numbers: list[int], seconds: float, hosts: int
) -> None:
    """Paid renters that ask for long answers and never read them."""

    async def one(stack: AsyncExitStack, host: Libp2pHost, number: int) -> str:
        head = SessionHead(
            chain_id=CHAIN_ID,
            marketplace=MARKET,
            job_id=JobId(number),
            host=listed.wallet,
            peer_id=listed.peer_id,
            model_id=MODEL,
            portal_url="",
            addresses=(listed.address,),
        )
        try:
            link, _state = await stack.enter_async_context(
                open_link(host, head, renter_wallet(number))
            )
            request = pb.Generate(
                request_id=random.Random(number).randbytes(16).hex(),
                model_id=MODEL,
                messages=[pb.Message(role="user", content="go")],
                max_tokens=4000,
            )
            await link.send(generate=request)
        except NodeError as error:
            return error.code
        return "stalled"

    async def all_of_them() -> None:
        async with AsyncExitStack() as stack:
            said: Counter[str] = Counter()
            for first in range(0, len(numbers), -(-len(numbers) // hosts)):
                host = await stack.enter_async_context(stranger())
                for number in numbers[first : first + -(-len(numbers) // hosts)]:
                    said[await one(stack, host, number)] += 1
            pipe.send(dict(said))
            await asyncio.sleep(seconds)

    asyncio.run(all_of_them())


def many_streams(pipe: Connection, target: str, count: int, seconds: float) -> None:
    """One peer, so many streams at once, each with a hello; held open."""

    async def all_of_them() -> None:
        said: Counter[str] = Counter()
        begun = time.monotonic()
        async with stranger() as host:
            peer = await host.connect(target)

            async def one() -> None:
                try:
                    stream = await host.open_stream(peer, [envelope.INFERENCE_PROTOCOL], 30.0)
                    hello = pb.Hello(min_version=1, max_version=1, agent="x", chain_id=CHAIN_ID)
                    await stream.write_frame(envelope.encode(hello=hello))
                    frame = await stream.read_frame(deadline_seconds=20)
                except NodeError as error:
                    said[f"reset ({error.code})"] += 1
                    return
                if frame is None:
                    said["closed"] += 1
                    return
                message = envelope.decode(frame)
                kind = message.WhichOneof("body") or "?"
                said[f"error {message.error.code}" if kind == "error" else kind] += 1

            async with asyncio.TaskGroup() as tasks:
                for _ in range(count):
                    tasks.create_task(one())
            pipe.send({"said": dict(said), "seconds": time.monotonic() - begun})
            await asyncio.sleep(max(0.0, seconds - (time.monotonic() - begun)))

    asyncio.run(all_of_them())


def sybils(
    pipe: Connection, address: str, target: str, count: int, at_once: int, seconds: float
) -> None:
    """New identities from one address: connect, announce the model, ask for the offer, stay."""

    async def all_of_them() -> None:
        said: Counter[str] = Counter()
        places = asyncio.Semaphore(at_once)
        end = time.monotonic() + seconds

        async def one() -> None:
            async with places:
                if time.monotonic() > end:
                    return
                said["ids"] += 1
                try:
                    async with asyncio.timeout(12), stranger(address) as host:
                        peer = await host.connect(target, 8.0)
                        said["connected"] += 1
                        # Its lookup dials the whole network: every one of them would be too slow.
                        if said["ids"] % 5 == 0:
                            key = provider_key(MODEL, CHAIN_ID)
                            said["announced"] += await host.dht.provide(key, 3.0)
                        stream = await host.open_stream(peer, [envelope.CAPABILITY_PROTOCOL], 4.0)
                        question = pb.CapabilityRequest(chain_id=CHAIN_ID)
                        await stream.write_frame(envelope.encode(capability_request=question))
                        frame = await stream.read_frame(deadline_seconds=4)
                        reply = envelope.decode(frame or b"")
                        told = reply.WhichOneof("body") or "closed"
                        said[f"told {reply.error.code if told == 'error' else told}"] += 1
                except* NodeError as group:
                    said[f"ended {leaves(group)[0].code}"] += 1
                except* TimeoutError:
                    said["ended timeout"] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(one())
        pipe.send(dict(said))

    asyncio.run(all_of_them())
