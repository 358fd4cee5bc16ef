"""Composition root of the local chain: start it, deploy, hand out the addresses, stop it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.units import Wei
from nodeapp.devnet.anvil import Anvil, AnvilOptions, running_anvil, set_native_balance
from nodeapp.devnet.deploy import DevnetModel, Rules, deploy
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.deployment import Deployment, save_deployment
from nodeapp.evm.provider import Provider

OWNER_FUNDS = Wei(1000 * 10**18)


@dataclass(frozen=True, slots=True)
class DevnetOptions:
    """What to run; every file of the chain stays below `directory`. Port 0: any free one."""

    directory: Path
    anvil: Path
    models: tuple[DevnetModel, ...]
    chain_id: int = 31337
    port: int = 0
    block_time_seconds: float = 1.0
    rules: Rules = field(default_factory=Rules)

    @property
    def deployment_file(self) -> Path:
        """Where the addresses are written."""
        return self.directory / "deployment.json"


@dataclass(frozen=True, slots=True)
class Devnet:
    """A running chain with the marketplace on it."""

    anvil: Anvil
    provider: Provider
    deployment: Deployment
    deployment_file: Path
    owner: Wallet
    treasury: Wallet

    @property
    def url(self) -> str:
        """RPC address."""
        return self.anvil.url

    @property
    def pid(self) -> int:
        """Process id of the chain."""
        return self.anvil.pid

    async def fund_native(self, address: Address, amount: Wei) -> None:
        """Set an account's native balance, wei."""
        await set_native_balance(self.provider, address, amount)


@contextlib.asynccontextmanager
async def running_devnet(options: DevnetOptions) -> AsyncIterator[Devnet]:
    """A chain with the contracts deployed and the models approved; ends with the block.

    Raises:
        Unavailable: anvil missing, port taken, or the chain stopped answering.
        Reverted: the contracts refused the set-up.
    """
    owner, treasury = new_wallet(), new_wallet()
    anvil_options = AnvilOptions(
        binary=options.anvil,
        log_file=options.directory / "anvil.log",
        chain_id=options.chain_id,
        port=options.port,
        block_time_seconds=options.block_time_seconds,
    )
    async with (
        running_anvil(anvil_options) as anvil,
        Provider([anvil.url], chain_id=options.chain_id) as provider,
    ):
        await set_native_balance(provider, owner.address, OWNER_FUNDS)
        await set_native_balance(provider, treasury.address, OWNER_FUNDS)
        deployment = await deploy(
            provider,
            owner,
            treasury=treasury.address,
            models=options.models,
            rules=options.rules,
        )
        save_deployment(options.deployment_file, deployment)
        yield Devnet(anvil, provider, deployment, options.deployment_file, owner, treasury)


async def run_devnet(
    options: DevnetOptions, *, stop: asyncio.Event, ready: Callable[[Devnet], None]
) -> None:
    """Run the chain in the foreground until `stop` is set.

    Args:
        options: what to run.
        stop: set it to end.
        ready: called once when the contracts stand.

    Raises:
        Unavailable: the chain ended by itself, or never came up.
    """
    async with running_devnet(options) as devnet:
        ready(devnet)
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(devnet.anvil.wait_ended())
            stopped = group.create_task(stop.wait())
            await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            stopped.cancel()
        if not stop.is_set():
            raise Unavailable(f"anvil ended by itself, see {options.directory / 'anvil.log'}")
