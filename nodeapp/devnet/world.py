"""Everything around a node on one machine: chain, bootstrap node, funded keys, settings files.

What a real network provides, a development world provides on loopback: contracts on anvil, a DHT
bootstrap node of its own process, a registered and priced host, a funded renter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import NotFound, Unavailable
from nodeapp.core.ids import ModelId
from nodeapp.devnet.deploy import DevnetModel, Rules
from nodeapp.devnet.main import Devnet, DevnetOptions, running_devnet
from nodeapp.devnet.provision import (
    HostOffer,
    KeyFiles,
    ensure_keys,
    provision_host,
    provision_renter,
)
from nodeapp.network.settings import PROCESS_ENVIRONMENT
from nodeapp.service.config import process_environment
from nodeapp.service.settings import (
    ChainSettings,
    InferenceSettings,
    NodeSettings,
    P2pSettings,
    ProverSettings,
    Settings,
    StorageSettings,
)
from nodeapp.service.supervisord import settings_toml
from nodeapp.service.tree import KEPT_VARIABLES

BOOTSTRAP_SECONDS = 60.0
POLL_SECONDS = 0.05
STOP_SECONDS = 5.0
DISPUTE_WINDOW_SECONDS = 2
"""Short, so that a session settles while one watches; live networks use 30 s."""
SOURCE = Path(__file__).resolve().parents[2]
DEMO_MODEL = DevnetModel(
    repo="bartowski/SmolLM2-135M-Instruct-GGUF",
    file_name="SmolLM2-135M-Instruct-Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """What to build; all files below `directory`. A port of 0 means any free one."""

    directory: Path
    anvil: Path
    model_path: Path
    profile_dir: Path
    chain_id: int = 31337
    rpc_port: int = 0
    p2p_port: int = 0
    portal_port: int = 0
    model: DevnetModel = DEMO_MODEL


@dataclass(frozen=True, slots=True)
class World:
    """A running world and the two settings files to use it with."""

    devnet: Devnet
    bootstrap: str
    host_keys: KeyFiles
    renter_keys: KeyFiles
    model_id: ModelId
    node_file: Path
    renter_file: Path
    bootstrap_pid: int
    portal_url: str


@contextlib.asynccontextmanager
async def running_world(options: WorldOptions) -> AsyncIterator[World]:
    """Start everything, write node.toml and renter.toml, end everything with the block.

    Raises:
        NotFound: the model file is missing.
        Unavailable: anvil or the bootstrap node cannot run.
    """
    chain_dir = await asyncio.to_thread(_prepare, options)
    devnet_options = DevnetOptions(
        directory=chain_dir,
        anvil=options.anvil,
        models=(options.model,),
        chain_id=options.chain_id,
        port=options.rpc_port,
        rules=Rules(dispute_window_seconds=DISPUTE_WINDOW_SECONDS),
    )
    async with (
        running_bootstrap(options.directory / "bootstrap") as bootstrap,
        running_devnet(devnet_options) as devnet,
    ):
        host_keys = ensure_keys(chain_dir, "host")
        renter_keys = ensure_keys(chain_dir, "renter")
        portal_port = options.portal_port or free_port()
        offer = HostOffer((options.model.model_id,), f"http://127.0.0.1:{portal_port}")
        provider, deployment = devnet.provider, devnet.deployment
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(provision_host(provider, deployment, host_keys.wallet, offer))
            tasks.create_task(provision_renter(provider, deployment, renter_keys.wallet))
        address, pid = await bootstrap.address()
        world = World(
            devnet,
            address,
            host_keys,
            renter_keys,
            options.model.model_id,
            options.directory / "node.toml",
            options.directory / "renter.toml",
            pid,
            f"http://127.0.0.1:{portal_port}",
        )
        _write_node_file(world, options, portal_port)
        _write_renter_file(world, options)
        yield world


def _prepare(options: WorldOptions) -> Path:
    if not options.model_path.is_file():
        raise NotFound(f"model file {options.model_path} is missing; run `make setup`")
    chain_dir = options.directory / "devnet"
    chain_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return chain_dir


class Bootstrap:
    """A bootstrap node that is coming up in a child process."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self._process = process
        self._ready_file = ready_file

    async def address(self) -> tuple[str, int]:
        """Its multiaddr once it can be dialled, and its pid.

        Raises:
            Unavailable: it ended or did not come up.
        """
        try:
            async with asyncio.timeout(BOOTSTRAP_SECONDS):
                while not await asyncio.to_thread(self._ready_file.exists):
                    if self._process.returncode is not None:
                        raise Unavailable(
                            f"bootstrap node ended with code {self._process.returncode};"
                            f" see {self._ready_file.with_name('bootstrap.log')}"
                        )
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise Unavailable("bootstrap node did not come up") from error
        text = await asyncio.to_thread(self._ready_file.read_text)
        return text.strip(), self._process.pid


@contextlib.asynccontextmanager
async def running_bootstrap(directory: Path) -> AsyncIterator[Bootstrap]:
    """A DHT bootstrap node on loopback; ends with the block."""
    ready_file = await asyncio.to_thread(_clear_ready_file, directory)
    log = await asyncio.to_thread((directory / "bootstrap.log").open, "ab")
    with log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nodeapp.p2p.bootstrap"),
            *("--state-dir", str(directory)),
            *("--listen", "/ip4/127.0.0.1/tcp/0"),
            *("--ready-file", str(ready_file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**process_environment(KEPT_VARIABLES), **PROCESS_ENVIRONMENT},
            cwd=SOURCE,
            start_new_session=True,
        )
    try:
        yield Bootstrap(process, ready_file)
    finally:
        await _end(process)


def _clear_ready_file(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready_file = directory / "address"
    ready_file.unlink(missing_ok=True)
    return ready_file


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_node_file(world: World, options: WorldOptions, portal_port: int) -> None:
    model = options.model
    settings = Settings(
        node=NodeSettings(state_dir=str(options.directory / "node")),
        chain=ChainSettings(
            rpc_urls=(world.devnet.url,),
            chain_id=options.chain_id,
            deployment_file=str(world.devnet.deployment_file),
            keystore_file=str(world.host_keys.keystore_file),
            password_file=str(world.host_keys.password_file),
            poll_seconds=0.5,
            withdraw_interval_seconds=0,
            max_gas_per_day=0,  # gas is free here, and campaigns send a year's worth in an hour
        ),
        inference=InferenceSettings(
            model_path=str(options.model_path),
            model_sha256=model.sha256,
            model_repo=model.repo,
            model_file=model.file_name,
        ),
        prover=ProverSettings(profile_dir=str(options.profile_dir), allow_test_srs=True),
        s5=StorageSettings(listen_port=portal_port),
        p2p=P2pSettings(
            listen=f"/ip4/127.0.0.1/tcp/{options.p2p_port or free_port()}",
            bootstrap=(world.bootstrap,),
            portal_url=f"http://127.0.0.1:{portal_port}",
        ),
    )
    world.node_file.write_text(
        "# Written by the development network; every key can be changed.\n"
        + settings_toml(settings),
        "utf-8",
    )


def _write_renter_file(world: World, options: WorldOptions) -> None:
    values: dict[str, object] = {
        "state_dir": str(options.directory / "renter"),
        "deployment_file": str(world.devnet.deployment_file),
        "keystore_file": str(world.renter_keys.keystore_file),
        "password_file": str(world.renter_keys.password_file),
        "rpc_urls": [world.devnet.url],
        "chain_id": options.chain_id,
        "bootstrap": [world.bootstrap],
        "model_id": world.model_id,
        "profile_dir": str(options.profile_dir),
        "allow_test_srs": True,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    world.renter_file.write_text("\n".join(lines) + "\n", "utf-8")
