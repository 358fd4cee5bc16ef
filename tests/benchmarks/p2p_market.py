"""The programs of the campaign that behave: bootstrap nodes, nodes, their backends, renters, churn.

Each is a function for `Lab.start`. A node is the real p2p process; a renter is the renter library
(Discovery, Asker) over a real libp2p host, told what to do by the campaign. The chain is scripted: every
read of the registry takes as long as one of an RPC endpoint of the same network.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from nodeapp.core.errors import NodeError, NotFound, Unavailable
from nodeapp.core.ids import Address, JobId, ModelId, PeerId
from nodeapp.evm.contracts import Contracts, ModelInfo, NodeInfo
from nodeapp.evm.deployment import Deployment
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode, NetworkSettings
from nodeapp.p2p import bootstrap, main
from nodeapp.renter.answer import Asker, Question
from nodeapp.renter.discovery import Discovery, FoundHost
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.renter.sources import Hint, Source, Sources
from nodeapp.renter.standing import Standings
from nodeapp.security.capability import capability_rule
from nodeapp.service.clock import SystemClock
from nodeapp.wire.capability import DHT_NAMESPACE
from nodeapp.wire.provider_key import provider_key
from tests.benchmarks.p2p_backend import (
    CHAIN_ID,
    MARKET,
    MODEL,
    PRICE,
    USDC,
    renter_wallet,
    serve,
)

PORT = 4001
LAYERS = ("dht", "registry", "gossip")
PATIENCE_SECONDS = 4.0
"""For a lost host, before the next one is asked."""
ANSWER_SECONDS = 40.0
DEPLOYMENT = Deployment(CHAIN_ID, USDC, USDC, MARKET, USDC, USDC, USDC, USDC)


def run_bootstrap(_pipe: Connection, address: str, directory: Path) -> None:
    words = ["--state-dir", str(directory), "--listen", f"/ip4/{address}/tcp/{PORT}"]
    sys.exit(bootstrap.main([*words, "--ready-file", str(directory / "ready")]))


def run_node(_pipe: Connection, config: Path) -> None:
    sys.argv = ["p2p", "--config", str(config)]
    sys.exit(main.main())


def run_backends(
    pipe: Connection, directories: Mapping[str, Path], renters: int, tokens_per_second: float
) -> None:
    """Chain and inference of every node, by the name of its wallet."""

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, directory in directories.items():
                tasks.create_task(serve(directory, renters, tokens_per_second, name))
            sockets = [d / "run" / "inference.sock" for d in directories.values()]
            while not all(socket.exists() for socket in sockets):
                await asyncio.sleep(0.05)
            pipe.send("ready")

    asyncio.run(all_of_them())


def run_passer_by(
    pipe: Connection, directory: Path, address: str, known: str, *, announces: bool
) -> None:
    """A DHT node that joins by one peer and stays until it is killed; some say they sell the model.

    Announcing looks up and dials the whole network, so it costs a hundred times what joining does.
    """

    async def pass_by() -> None:
        network = NetworkSettings(
            identity_path=directory / "identity.key", listen=(f"/ip4/{address}/tcp/0",)
        )
        async with Libp2pHost.running(network, on_death=sys.exit) as host:
            await host.connect(known)
            pipe.send("joined")
            if announces:
                await host.dht.provide(provider_key(MODEL, CHAIN_ID))
            await asyncio.Event().wait()

    asyncio.run(pass_by())


@dataclass(frozen=True, slots=True)
class Listed:
    """One registration."""

    wallet: Address
    peer_id: PeerId
    address: str


class ScriptedRegistry(Contracts):
    """What the registry says; each answer comes after `seconds`."""

    def __init__(self, hosts: tuple[Listed, ...], seconds: float) -> None:
        self.deployment = DEPLOYMENT
        self._hosts = {host.wallet: host for host in hosts}
        self._seconds = seconds

    async def model(self, model_id: ModelId) -> ModelInfo:
        await asyncio.sleep(self._seconds)
        return ModelInfo(model_id, "bench", "bench.gguf", bytes.fromhex("cd" * 32), 1, True, 0)  # type: ignore[arg-type]

    async def nodes_for_model(self, _model_id: ModelId) -> tuple[Address, ...]:
        await asyncio.sleep(self._seconds)
        return tuple(self._hosts)

    async def node(self, host: Address, _block: object = "latest") -> NodeInfo:
        await asyncio.sleep(self._seconds)
        known = self._hosts[host]
        said = {"libp2p": {"peerId": known.peer_id, "addresses": [known.address]}}
        metadata = msgspec.json.encode(said).decode()
        return NodeInfo(host, 0, True, metadata, "", (MODEL,), 0, PRICE)  # type: ignore[arg-type]

    async def is_active_node(self, host: Address, _block: object = "latest") -> bool:
        await asyncio.sleep(self._seconds)
        return host in self._hosts

    async def model_price(self, host: Address, *_more: object) -> Any:
        await asyncio.sleep(self._seconds)
        if host not in self._hosts:
            raise NotFound(f"host {host} has no price")
        return PRICE


@dataclass(frozen=True, slots=True)
class SomeSources(Sources):
    """Those of some layers; a dead registry refuses, the others never answer."""

    alive: tuple[str, ...] = LAYERS

    def all(self) -> Mapping[str, Source]:
        def dead(name: str) -> Source:
            async def source(_model_id: ModelId) -> AsyncIterator[Hint]:
                if name == "registry":
                    raise Unavailable("registry does not answer")
                await asyncio.Event().wait()
                yield Hint(PeerId(""), (), name)

            return source

        known = super(SomeSources, self).all()
        alive = {name: source for name, source in known.items() if name.split()[0] in self.alive}
        return alive | {name: dead(name) for name in LAYERS if name not in self.alive}


class TimedStandings(Standings):
    """When each host was found, seconds from now."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})
        self._begun = time.monotonic()
        self.found_after: list[float] = []

    def met(self, *words: Any, **more: Any) -> None:
        self.found_after.append(time.monotonic() - self._begun)
        super().met(*words, **more)


@dataclass(slots=True)
class Renter:
    """One renter with its wallet and its paid sessions, one with every host."""

    number: int
    directory: Path
    hosts: tuple[Listed, ...]
    bootstrap: tuple[str, ...]
    registry_seconds: float
    rng: random.Random
    host: Libp2pHost | None = None
    found: list[FoundHost] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _records: dict[Address, SessionRecord] = field(default_factory=dict)
    _turns: int = 0

    async def fresh(self) -> Libp2pHost:
        """A new libp2p host that knows nobody."""
        await self._stack.aclose()
        self._turns += 1
        network = NetworkSettings(
            identity_path=self.directory / f"turn{self._turns}.key",
            listen=(),
            dht_mode=DhtMode.CLIENT,
            record_rules={DHT_NAMESPACE: capability_rule(SystemClock().unix_seconds)},
        )
        self.host = await self._stack.enter_async_context(
            Libp2pHost.running(network, on_death=sys.exit)
        )
        return self.host

    async def find(self, alive: tuple[str, ...] = LAYERS) -> dict[str, object]:
        """Look for hosts as somebody who has just arrived."""
        host = await self.fresh()
        memory = TimedStandings(self.directory / f"turn{self._turns}.json")
        registry = ScriptedRegistry(self.hosts, self.registry_seconds)
        sources = SomeSources(host, registry, self.bootstrap, memory, SystemClock(), alive)
        begun = time.monotonic()
        error = ""
        try:
            self.found = await Discovery(sources).find(MODEL, max_price=PRICE)
        except NodeError as failure:
            self.found, error = [], failure.message
        after = [*memory.found_after, 1e9, 1e9]
        return {
            "seconds": time.monotonic() - begun,
            "first": after[0],
            "second": after[1],
            "wallets": tuple(host.wallet for host in self.found),
            "by": {host.wallet: host.source for host in self.found},
            "error": error,
        }

    async def answer(self, tokens: int = 24) -> dict[str, object]:
        """A whole answer of one of the hosts found; the next one when a host is lost."""
        begun = time.monotonic()
        choice = list(self.found)
        self.rng.shuffle(choice)
        errors: list[str] = []
        for found in choice:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    first = await self._ask(found, tokens)
            except (NodeError, TimeoutError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            return {
                "ok": True,
                "seconds": time.monotonic() - begun,
                "first": first,
                "errors": errors,
            }
        return {"ok": False, "seconds": time.monotonic() - begun, "first": 0.0, "errors": errors}

    async def go_on(
        self, seconds: float, alive: tuple[str, ...] = LAYERS
    ) -> list[dict[str, object]]:
        """Find and ask, again and again; each turn begins from nothing."""
        end, turns = time.monotonic() + seconds, []
        while time.monotonic() < end:
            at = time.monotonic()
            turn = await self.find(alive) | {"at": at}
            turns.append(turn | {"answer": await self.answer()})
        return turns

    async def visit(self, seconds: float, wallet: str, *, anew: bool) -> dict[str, object]:
        """Short answers of one host until the time is over; anew: on a new connection each."""
        end = time.monotonic() + seconds
        found = next(host for host in self.found if host.wallet == wallet)
        times: list[float] = []
        errors: list[str] = []
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                if anew:
                    await self.fresh()
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._ask(found, 8)
            except (NodeError, TimeoutError) as error:
                errors.append(f"{type(error).__name__}: {error}")
            else:
                times.append(time.monotonic() - begun)
            await asyncio.sleep(1.0)
        return {"times": times, "errors": errors}

    async def freeze(self, wallet: str) -> None:
        """Begin a long answer, and never end it."""
        found = next(host for host in self.found if host.wallet == wallet)
        await self._ask(found, 2000)

    async def _ask(self, found: FoundHost, tokens: int) -> float:
        if self.host is None:
            raise RuntimeError("answer before find")
        asker = Asker(
            self.host,
            renter_wallet(self.number),
            self._record(found),
            clock=SystemClock(),
            report=lambda _event: None,
        )
        question = Question((("user", "go"),), tokens)
        ended = await asker.ask(question, patience_seconds=PATIENCE_SECONDS)
        if ended.tokens != tokens:
            raise Unavailable(f"{ended.tokens} tokens instead of {tokens}")
        return ended.first_token_seconds

    def _record(self, found: FoundHost) -> SessionRecord:
        if found.wallet not in self._records:
            head = SessionHead(
                chain_id=CHAIN_ID,
                marketplace=MARKET,
                job_id=JobId(self.number),
                host=found.wallet,
                peer_id=found.record.peer_id,
                model_id=MODEL,
                portal_url="",
                addresses=(found.address,),
            )
            place = self.directory / found.wallet
            self._records[found.wallet] = SessionRecord.create(place, head)
        return self._records[found.wallet]

    async def stop(self) -> None:
        await self._stack.aclose()


def run_renter(pipe: Connection, renter: Renter) -> None:
    """Do what is asked over the pipe: (method, arguments) -> its value."""

    async def obey() -> None:
        while True:
            method, arguments = await asyncio.to_thread(pipe.recv)
            pipe.send(await getattr(renter, method)(**arguments))

    with quiet_end():
        asyncio.run(obey())


@contextmanager
def quiet_end() -> Iterator[None]:
    """The campaign closed the pipe: there is nothing left to do."""
    try:
        yield
    except (EOFError, BrokenPipeError):
        sys.exit(0)
