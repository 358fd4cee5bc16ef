"""Renters of the p2p benchmark, and the two ends of its bulk transfer; one JSON line of facts.

python -m tests.benchmarks.p2p_renters stream --address A --dir D --renters N --tokens T
python -m tests.benchmarks.p2p_renters requests --address A --dir D --count N
python -m tests.benchmarks.p2p_renters sink --dir D          (prints its address, then sinks)
python -m tests.benchmarks.p2p_renters bulk --address A --dir D --mib N
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from nodeapp.core.ids import JobId, PeerId
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.evm.accounts import Wallet
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode, NetworkSettings
from nodeapp.network.streams import Stream
from nodeapp.renter.link import Link, open_link
from nodeapp.renter.record import SessionHead
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.signed import domain_separator, receipt_digest
from tests.benchmarks.p2p_backend import CHAIN_ID, MARKET, MODEL, host_wallet, renter_wallet

STREAMS_PER_HOST = 4
RECEIPT_EVERY = 16
REQUESTS_PER_SECOND = 50.0
SINK = "/fabstir/bench-sink/1.0.0"
CHUNK = 60_000
SEPARATOR = domain_separator(CHAIN_ID, MARKET)


class Session:
    """One renter on one link; keeps the running hash and signs receipts."""

    def __init__(self, link: Link, wallet: Wallet, job_id: JobId) -> None:
        self.link, self._wallet, self._job_id = link, wallet, job_id
        self._hash = initial_hash(CHAIN_ID, MARKET, job_id)
        self._count = self._receipted = 0
        self.delays: list[float] = []
        self.batches = 0
        self.first_token = 0.0

    async def ask(self, tokens: int) -> None:
        """One answer; every token's way from the engine to here is measured."""
        begun = time.monotonic_ns()
        request = pb.Generate(
            request_id=secrets.token_hex(16),
            model_id=MODEL,
            messages=[pb.Message(role="user", content="go")],
            max_tokens=tokens,
        )
        await self.link.send(generate=request)
        is_first = True
        while True:
            message = await self.link.receive()
            match message.WhichOneof("body"):
                case "tokens":
                    now = time.monotonic_ns()
                    if is_first:
                        self.first_token = (now - begun) / 1e6
                        is_first = False
                    made = message.tokens.text.split()
                    self.delays += [(now - int(stamp)) / 1e6 for stamp in made]
                    self.batches += 1
                    ids = tuple(message.tokens.ids)
                    self._hash = extend_hash(self._hash, ids)
                    self._count += len(ids)
                    if self._count - self._receipted >= RECEIPT_EVERY:
                        await self._receipt()
                case "end":
                    await self._receipt()
                    return

    async def _receipt(self) -> None:
        digest = receipt_digest(SEPARATOR, self._job_id, self._count, self._hash)
        self._receipted = self._count
        await self.link.send(
            receipt=pb.Receipt(
                job_id=self._job_id,
                tokens=self._count,
                running_hash=self._hash,
                signature=self._wallet.sign_digest(digest),
            )
        )


def network(directory: Path, name: str, *, listen: bool = False) -> NetworkSettings:
    return NetworkSettings(
        identity_path=directory / f"{name}.key",
        listen=("/ip4/127.0.0.1/tcp/0",) if listen else (),
        dht_mode=DhtMode.CLIENT,
    )


async def open_session(
    stack: AsyncExitStack, host: Libp2pHost, address: str, number: int
) -> Session:
    wallet, job_id = renter_wallet(number), JobId(number)
    head = SessionHead(
        chain_id=CHAIN_ID,
        marketplace=MARKET,
        job_id=job_id,
        host=host_wallet().address,
        peer_id=PeerId(address.rpartition("/")[2]),
        model_id=MODEL,
        portal_url="",
        addresses=(address,),
    )
    link, _state = await stack.enter_async_context(open_link(host, head, wallet))
    return Session(link, wallet, job_id)


async def stream(directory: Path, address: str, renters: int, tokens: int) -> dict[str, object]:
    """Everybody at once; the way of each token in milliseconds."""
    async with AsyncExitStack() as stack:
        sessions = []
        for first in range(1, renters + 1, STREAMS_PER_HOST):
            host = await stack.enter_async_context(
                Libp2pHost.running(network(directory, f"renter{first}"), on_death=print)
            )
            for number in range(first, min(renters + 1, first + STREAMS_PER_HOST)):
                sessions.append(await open_session(stack, host, address, number))
        say({"ready": len(sessions)})
        await asyncio.to_thread(sys.stdin.readline)
        async with asyncio.TaskGroup() as tasks:
            for session in sessions:
                tasks.create_task(session.ask(tokens))
        delays = sorted(delay for session in sessions for delay in session.delays)
        # A second answer on the warm connection, alone.
        await sessions[0].ask(2)
        return {
            "tokens": len(delays),
            "batches": sum(session.batches for session in sessions),
            "p50_ms": delays[len(delays) // 2],
            "p99_ms": delays[len(delays) * 99 // 100],
            "warm_first_token_ms": sessions[0].first_token,
        }


async def requests(directory: Path, address: str, count: int) -> dict[str, object]:
    """One short answer after the other; stops at a tenth for a first look at the memory."""
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            Libp2pHost.running(network(directory, "many"), on_death=print)
        )
        # Nobody claims here, and a session may have only so many unclaimed tokens.
        sessions = [
            await open_session(stack, host, address, number)
            for number in range(1, STREAMS_PER_HOST + 1)
        ]
        begun = time.monotonic()
        for number in range(count):
            if number == count // 10:
                say({"done": number})
                await asyncio.to_thread(sys.stdin.readline)
                begun = time.monotonic() - number / REQUESTS_PER_SECOND
            # Faster is a flood: the node ends a stream of more than 200 frames a second.
            await asyncio.sleep(max(0.0, begun + number / REQUESTS_PER_SECOND - time.monotonic()))
            await sessions[number % STREAMS_PER_HOST].ask(2)
        return {"done": count}


async def sink(directory: Path) -> dict[str, object]:
    """Read and count until the parent ends us."""

    async def read_all(stream: Stream) -> None:
        total = 0
        while (frame := await stream.read_frame(1 << 20)) is not None:
            total += len(frame)
        await stream.write_frame(str(total).encode())

    async with Libp2pHost.running(network(directory, "sink", listen=True), on_death=print) as host:
        host.set_handler(SINK, read_all)
        say({"address": host.addresses[0]})
        await asyncio.Event().wait()
    return {}


async def bulk(directory: Path, address: str, mib: int) -> dict[str, object]:
    """Send, and wait until all of it was counted."""
    async with Libp2pHost.running(network(directory, "bulk"), on_death=print) as host:
        peer = await host.connect(address)
        stream = await host.open_stream(peer, [SINK])
        chunk, left = secrets.token_bytes(CHUNK), mib << 20
        begun = time.monotonic()
        while left > 0:
            await stream.write_frame(chunk[:left])
            left -= CHUNK
        await stream.close()
        counted = await stream.read_frame(deadline_seconds=120)
        return {"seconds": time.monotonic() - begun, "bytes": int(counted or b"0")}


def say(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("stream", "requests", "sink", "bulk"))
    parser.add_argument("--address", default="")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--renters", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--mib", type=int, default=50)
    asked = parser.parse_args()
    work = {
        "stream": lambda: stream(asked.dir, asked.address, asked.renters, asked.tokens),
        "requests": lambda: requests(asked.dir, asked.address, asked.count),
        "sink": lambda: sink(asked.dir),
        "bulk": lambda: bulk(asked.dir, asked.address, asked.mib),
    }
    say(asyncio.run(work[asked.what]()))


if __name__ == "__main__":
    main()
