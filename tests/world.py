"""A whole world for tests, as its users start it: `devnet`, `run`, and renters as processes.

Rules: every wait has an end and polls a real condition; whatever is started here is ended here.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
import tomli

from nodeapp.core.errors import Unavailable
from nodeapp.devnet.provision import USDC_FUNDS, ensure_keys, provision_renter
from nodeapp.evm.contracts import Contracts, SessionJob
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.provider import Provider
from nodeapp.prover.profile import cached_profile_dir, ensure_profile
from nodeapp.renter.events import AnyEvent
from nodeapp.renter.record import SessionRecord
from nodeapp.rpc.chain import ChainClient
from nodeapp.service.config import load_settings
from nodeapp.service.paths import Paths, default_cache_dir, resolve_paths
from nodeapp.service.tree import ProcessStatus, tree_status
from nodeapp.wire.ipc_chain import SessionDetail

ROOT = Path(__file__).resolve().parents[1]
CLI = (sys.executable, "-m", "nodeapp.cli.main")
POLL_SECONDS = 0.1
STORY = "Write a short story about a lighthouse keeper who finds a message in a bottle."
_decode_event = msgspec.json.Decoder(AnyEvent).decode
Value = TypeVar("Value")
Event = TypeVar("Event")


def until(look: Callable[[], Value], what: str, seconds: float = 30.0) -> Value:
    """The first true answer of `look`."""
    end = time.monotonic() + seconds
    while not (value := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not inside {seconds:g} s: {what}")
        time.sleep(POLL_SECONDS)
    return value


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class Started:
    """One command of ours as a process; its output goes to files."""

    def __init__(self, directory: Path, name: str, *arguments: object) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._out = directory / f"{name}.out"
        self._err = directory / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*CLI, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8", errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", errors="replace")

    def finish(self, seconds: float = 60.0) -> int:
        """Exit code, when it ends by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(
                f"{self.name} still runs after {seconds:g} s: {last_line(self.err)}"
            ) from error

    def until_said(self, text: str, seconds: float = 30.0) -> None:
        """Wait for a text on standard error or output."""

        def said() -> bool:
            return text in self.err or text in self.out

        until(lambda: said() or self.process.poll() is not None, f"{self.name}: {text}", seconds)
        assert said(), f"{self.name} ended without {text!r}: {self.out[-800:]} {self.err[-800:]}"

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, seconds: float = 25.0) -> int:
        """Ctrl-C, and its exit code."""
        self.signal(signal.SIGINT)
        return self.finish(seconds)


class Chat(Started):
    """`renter chat --json` and what it reported so far."""

    def events(self) -> list[AnyEvent]:
        lines = self._out.read_bytes().split(b"\n")[:-1]
        return [_decode_event(line) for line in lines]

    def all(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events() if isinstance(event, kind)]

    def one(self, kind: type[Event]) -> Event:
        found = self.all(kind)
        assert found, f"no {kind.__name__}: {self.out[-500:]} {self.err[-800:]}"
        return found[-1]

    def until_event(self, kind: type[Event], seconds: float = 30.0) -> Event:
        until(
            lambda: self.all(kind) or self.process.poll() is not None,
            f"{self.name}: {kind.__name__}; {last_line(self.err)}",
            seconds,
        )
        return self.one(kind)

    def tokens(self) -> int:
        from nodeapp.renter.events import TokensReceived

        return sum(event.tokens for event in self.all(TokensReceived))

    def until_tokens(self, count: int, seconds: float = 40.0) -> None:
        until(
            lambda: self.tokens() >= count or self.process.poll() is not None,
            f"{self.name}: {count} tokens, {last_line(self.err)}",
            seconds,
        )
        assert self.tokens() >= count, f"{self.name} ended early: {self.err[-800:]}"


@dataclass(frozen=True, slots=True)
class RenterHome:
    """One renter: wallet, settings file, records."""

    directory: Path
    config: Path
    address: str

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def chat(self, prompt: str, *arguments: object, name: str = "chat") -> Chat:
        more = ("--json", "--config", self.config)
        return Chat(self.directory, name, "renter", "chat", prompt, *arguments, *more)

    def command(self, verb: str, *arguments: object) -> Started:
        return Started(self.directory, verb, "renter", verb, *arguments, "--config", self.config)

    def record(self, job_id: int) -> SessionRecord:
        return SessionRecord.load(self.state, job_id)


@dataclass(slots=True)
class World:
    """A chain, a node that is up, and renters on demand."""

    directory: Path
    devnet: Started
    node_file: Path
    renter_file: Path
    node: Started | None = None

    @property
    def paths(self) -> Paths:
        return resolve_paths(load_settings(self.node_file).node)

    @property
    def node_values(self) -> dict[str, object]:
        return tomli.loads(self.node_file.read_text())

    @property
    def renter_values(self) -> dict[str, object]:
        return tomli.loads(self.renter_file.read_text())

    def renter(self, name: str, *, usdc: int = USDC_FUNDS, **settings: object) -> RenterHome:
        """A new renter with its own funded wallet."""
        directory = self.directory / f"renter-{name}"
        directory.mkdir()
        keys = ensure_keys(directory, "wallet")
        deployment = load_deployment(Path(str(self.renter_values["deployment_file"])))

        async def fund() -> None:
            async with self.provider() as provider:
                await provision_renter(provider, deployment, keys.wallet, usdc=usdc)

        asyncio.run(fund())
        values = self.renter_values | {
            "state_dir": str(directory / "state"),
            "keystore_file": str(keys.keystore_file),
            "password_file": str(keys.password_file),
            **settings,
        }
        config = directory / "renter.toml"
        config.write_text(as_toml(values))
        return RenterHome(directory, config, keys.wallet.address)

    def provider(self) -> Provider:
        values = self.renter_values
        return Provider(values["rpc_urls"], chain_id=values["chain_id"])

    def on_chain(self, job_id: int) -> SessionJob:
        """The session as the contract tells it."""
        deployment = load_deployment(Path(str(self.renter_values["deployment_file"])))

        async def ask() -> SessionJob:
            async with self.provider() as provider:
                return await Contracts(provider, deployment).session(job_id)

        return asyncio.run(ask())

    def detail(self, job_id: int) -> SessionDetail:
        """The session as the node's ledger tells it."""

        async def ask() -> SessionDetail:
            async with ChainClient(self.paths.socket("chain")) as chain:
                return await chain.detail(job_id)

        return asyncio.run(ask())

    def until_settled(self, job_id: int, seconds: float = 60.0) -> SessionJob:
        """Wait for the end of a closed session on chain."""
        until(
            lambda: self.on_chain(job_id).status != 0, f"session {job_id} settled", seconds=seconds
        )
        return self.on_chain(job_id)

    def status(self) -> dict[str, ProcessStatus]:
        processes = tuple(load_settings(self.node_file).node.processes)
        return {one.process: one for one in asyncio.run(tree_status(self.paths, processes))}

    def until_ready(self, seconds: float = 60.0) -> None:
        """Every process answers that it is ready."""
        until(
            lambda: all(one.ready for one in self.status().values()),
            "every process ready",
            seconds=seconds,
        )

    def metric(self, process: str, name: str) -> float:
        """The sum of one metric's samples."""
        text = asyncio.run(_metrics(self.paths.socket(process)))
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == name
        ]
        assert found, f"{process} has no metric {name}"
        return sum(found)

    def pid(self, process: str) -> int:
        """Of a process of the tree, by its module on the command line."""
        module = {"s5": "storage"}.get(process, process)
        assert self.node is not None
        for child in psutil.Process(self.node.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if f"nodeapp.{module}.main" in words or (
                    process == "supervisord" and "supervisor.supervisord" in words
                ):
                    return child.pid
        raise AssertionError(f"no process {process}")

    def anvil(self) -> psutil.Process:
        children = psutil.Process(self.devnet.process.pid).children(recursive=True)
        return next(child for child in children if child.name() == "anvil")

    def start_node(self, *flags: str) -> Started:
        sets = [word for flag in flags for word in ("--set", flag)]
        self.node = Started(self.directory, "run", "run", "--config", self.node_file, *sets)
        return self.node

    def stop(self) -> list[str]:
        """End everything; what is left of it."""
        for started in (self.node, self.devnet):
            if started is not None and started.process.poll() is None:
                started.stop()
        return left_of(self.directory)


async def _metrics(socket: Path) -> str:
    import aiohttp

    connector = aiohttp.UnixConnector(path=str(socket))
    limit = aiohttp.ClientTimeout(total=5)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=limit) as session,
            session.get("http://process/metrics") as response,
        ):
            return await response.text()
    except aiohttp.ClientError as error:
        raise Unavailable(str(error)) from error


def as_toml(values: dict[str, object]) -> str:
    """Flat keys and one level of tables."""
    import json

    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def left_of(directory: Path) -> list[str]:
    """Processes that name the directory, and sockets in it."""
    found = [str(path) for path in directory.rglob("*") if path.is_socket()]
    for process in psutil.process_iter(["cmdline", "status", "pid"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(directory) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.info['pid']} {words[:160]}")
    return found


def until_nothing_left(directory: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while left := left_of(directory):
        assert time.monotonic() < end, f"left after {seconds:g} s: {left}"
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def started_devnet(directory: Path, *, kzg: bool = True, chain_id: int = 31337) -> Iterator[World]:
    """A chain with settings files; the node is not started. kzg: proofs in seconds."""
    places = ("--dir", directory, "--rpc-port", 0, "--chain-id", chain_id)
    devnet = Started(directory, "devnet", "devnet", *places)
    world = World(directory, devnet, directory / "node.toml", directory / "renter.toml")
    try:
        devnet.until_said("Ctrl-C stops it", 40)
        if kzg:
            profile = cached_profile_dir(default_cache_dir(), "kzg")
            asyncio.run(ensure_profile(profile, "kzg"))
            node, renter = world.node_values, world.renter_values
            node["prover"]["profile_dir"] = renter["profile_dir"] = str(profile)
            node["prover"]["profile"] = "kzg"
            world.node_file.write_text(as_toml(node))
            world.renter_file.write_text(as_toml(renter))
        yield world
    finally:
        left = world.stop()
    assert not left, left


@contextlib.contextmanager
def running_world(directory: Path) -> Iterator[World]:
    """Chain and node, ready."""
    with started_devnet(directory) as world:
        world.start_node().until_said("node ready", 90)
        yield world
        code = world.node.stop() if world.node is not None else 0
        assert code == 0, f"the node ended with {code}"
