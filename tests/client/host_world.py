"""A chain with the contracts and a host wallet that nobody registered yet, as a user has them."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.core.units import Wei
from nodeapp.devnet.anvil import find_anvil
from nodeapp.devnet.deploy import DevnetModel
from nodeapp.devnet.main import Devnet, DevnetOptions, running_devnet
from nodeapp.devnet.provision import STAKE, ensure_keys
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.calls import mint
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.transactions import Transactions
from nodeapp.service.paths import default_cache_dir
from tests.world import CLI, ROOT, as_toml

FIRST = DevnetModel(
    "bartowski/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct-Q4_1.gguf", "11" * 32
)
SECOND = DevnetModel("someone/Other-GGUF", "other-q8.gguf", "22" * 32)
API_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class HostWorld:
    """What a host has before it registers: a wallet, settings, a chain."""

    directory: Path
    devnet: Devnet
    wallet: Wallet
    config: Path

    @property
    def contracts(self) -> Contracts:
        return Contracts(self.devnet.provider, self.devnet.deployment)

    def write_settings(self, **chain: object) -> None:
        keys = ensure_keys(self.directory, "host")
        values = {
            "rpc_urls": [self.devnet.url],
            "deployment_file": str(self.devnet.deployment_file),
            "keystore_file": str(keys.keystore_file),
            "password_file": str(keys.password_file),
            "poll_seconds": 0.1,
            "listing_api_url": API_URL,
            "listing_prices": ["* 2.00 usd", "* 0.001 native"],
            "listing_location": "Berlin",
            **chain,
        }
        node = {"state_dir": str(self.directory / "n")}
        self.config.write_text(as_toml({"node": node, "chain": values}))

    async def fund(self, *, native: int = 10**18, fab: int = STAKE) -> None:
        await self.devnet.fund_native(self.wallet.address, Wei(10**18))
        if fab:
            call = mint(self.devnet.deployment.fab, self.wallet.address, fab)
            await Transactions(self.devnet.provider).send(call, self.wallet)
        await self.devnet.fund_native(self.wallet.address, Wei(native))

    def host(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`fabstir-node host …`; blocks, so call it by asyncio.to_thread."""
        return subprocess.run(
            [*CLI, "host", *arguments, "--config", str(self.config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )

    def json(self, *arguments: str) -> dict[str, object]:
        done = self.host(*arguments, "--json")
        assert done.returncode in (0, 3), done.stderr
        return msgspec.json.decode(done.stdout, type=dict[str, object])


@asynccontextmanager
async def host_world(directory: Path) -> AsyncIterator[HostWorld]:
    options = DevnetOptions(
        directory=directory / "devnet",
        anvil=find_anvil(default_cache_dir()),
        models=(FIRST, SECOND),
        block_time_seconds=0,
    )
    async with running_devnet(options) as devnet:
        wallet = ensure_keys(directory, "host").wallet
        world = HostWorld(directory, devnet, wallet, directory / "node.toml")
        world.write_settings()
        yield world
