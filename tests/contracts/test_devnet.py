"""The local chain's life: up, ready, gone; and its faults."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.devnet.anvil import find_anvil
from nodeapp.devnet.main import Devnet, DevnetOptions, run_devnet, running_devnet
from nodeapp.devnet.provision import (
    HostOffer,
    ensure_keys,
    provision_host,
    provision_renter,
)
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.errors import Reverted
from tests.contracts.world import MODEL

CHILD = """
import asyncio, sys
from pathlib import Path
from nodeapp.devnet.anvil import AnvilOptions, running_anvil

async def main():
    async with running_anvil(AnvilOptions(Path(sys.argv[1]), Path(sys.argv[2]))) as anvil:
        print(anvil.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def options(anvil_binary: Path, tmp_path: Path) -> DevnetOptions:
    return DevnetOptions(tmp_path / "chain", anvil_binary, (MODEL,), block_time_seconds=0)


async def test_a_chain_with_block_time_is_ready_and_provisioned_within_six_seconds(
    options: DevnetOptions, tmp_path: Path
) -> None:
    started = time.monotonic()
    host = ensure_keys(tmp_path, "host").wallet
    renter = ensure_keys(tmp_path, "renter").wallet
    async with running_devnet(replace(options, block_time_seconds=1.0)) as devnet:
        offer = HostOffer((MODEL.model_id,), "http://127.0.0.1:1")
        async with asyncio.TaskGroup() as group:
            group.create_task(provision_host(devnet.provider, devnet.deployment, host, offer))
            group.create_task(provision_renter(devnet.provider, devnet.deployment, renter))
        assert time.monotonic() - started < 6
        assert load_deployment(devnet.deployment_file) == devnet.deployment
        contracts = Contracts(devnet.provider, devnet.deployment)
        assert await contracts.is_active_node(host.address)
        usdc = devnet.deployment.usdc
        assert await contracts.asset_balance(usdc, renter.address) == 1000 * 10**6
        assert await contracts.model_price(host.address, MODEL.model_id, usdc) == 2000
        with pytest.raises(Reverted, match="Already registered"):
            await provision_host(devnet.provider, devnet.deployment, host, offer)
        pid = devnet.pid
    assert not psutil.pid_exists(pid)


async def test_the_chain_runs_until_it_is_told_to_stop(options: DevnetOptions) -> None:
    stop = asyncio.Event()
    seen: list[Devnet] = []

    def ready(devnet: Devnet) -> None:
        seen.append(devnet)
        stop.set()

    await run_devnet(options, stop=stop, ready=ready)
    assert not psutil.pid_exists(seen[0].pid)


async def test_a_chain_that_dies_is_reported(options: DevnetOptions) -> None:
    def kill(devnet: Devnet) -> None:
        os.kill(devnet.pid, signal.SIGKILL)

    with pytest.raises(Unavailable, match="anvil ended by itself"):
        await run_devnet(options, stop=asyncio.Event(), ready=kill)


async def test_a_taken_port_is_named(options: DevnetOptions) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port}"):
            async with running_devnet(replace(options, port=port)):
                pass


async def test_a_missing_binary_says_what_to_run(options: DevnetOptions, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="make setup"):
        find_anvil(tmp_path)
    with pytest.raises(Unavailable, match="make setup"):
        async with running_devnet(replace(options, anvil=tmp_path / "anvil")):
            pass
    with pytest.raises(InvalidRequest, match="negative"):
        async with running_devnet(replace(options, block_time_seconds=-1)):
            pass


async def test_the_chain_dies_with_a_killed_parent(anvil_binary: Path, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(anvil_binary),
        str(tmp_path / "anvil.log"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(20):
            chain = psutil.Process(int(await parent.stdout.readline()))
        parent.kill()
        await parent.wait()
        await asyncio.to_thread(chain.wait, 10)
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()


def test_keys_are_made_once(tmp_path: Path) -> None:
    first, again = ensure_keys(tmp_path, "host"), ensure_keys(tmp_path, "host")
    assert first.wallet.address == again.wallet.address
    assert ensure_keys(tmp_path, "renter").wallet.address != first.wallet.address
    assert first.keystore_file.stat().st_mode & 0o777 == 0o600
