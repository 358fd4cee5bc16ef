"""The chain process's connection: what it shows of its endpoints, when it looks again."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nodeapp.chain.connection import Connection
from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.devnet.main import Devnet
from nodeapp.evm.errors import Disagreement
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from tests.fakes.fault_proxy import FaultProxy


def connected(metrics: Metrics, *urls: str, **settings) -> Connection:
    chosen = ChainSettings(rpc_urls=urls, rpc_timeout_seconds=0.5, **settings)
    return Connection(chosen, SystemClock(), metrics)


async def test_a_disagreement_is_shown_counted_and_over_when_they_agree(devnet: Devnet) -> None:
    metrics = Metrics("chain")
    async with contextlib.AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(FaultProxy(devnet.url).running()) for _ in range(2)
        ]
        urls = [proxy.url for proxy in proxies]
        connection = await stack.enter_async_context(connected(metrics, *urls))
        await connection.survey()
        assert connection.summary() == ""
        proxies[1].set("other_hash")
        await devnet.provider.request("evm_mine", [])
        with pytest.raises(Disagreement):
            await connection.survey()
        assert "new deposits wait: rpc endpoints disagree on block" in connection.summary()
        assert b"fabstir_chain_rpc_disagreements_total 1.0" in metrics.render()
        proxies[1].set("")
        await connection.survey()
        assert connection.summary() == ""
        assert b"fabstir_chain_rpc_endpoints_usable 2.0" in metrics.render()


async def test_an_endpoint_that_rests_is_shown_without_its_secret(devnet: Devnet) -> None:
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(devnet.url).running())
        connection = connected(Metrics("chain"), proxy.url, devnet.url)
        await stack.enter_async_context(connection)
        proxy.set("html")
        await connection.survey()
        assert "rests: answer is not json" in connection.summary()
        assert "secret-key" not in connection.summary()


async def test_a_new_head_wakes_the_poller_long_before_its_time(devnet: Devnet) -> None:
    bell = devnet.url.replace("http", "ws")
    connection = connected(Metrics("chain"), devnet.url, bell, poll_seconds=30.0)
    async with asyncio.timeout(10), connection, asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(connection.listen())
        while not connection._heads.live:
            await asyncio.sleep(0.01)
        await devnet.provider.request("evm_mine", [])
        await connection.wait()
        listening.cancel()


def test_addresses_that_only_ring_are_not_enough() -> None:
    with pytest.raises(InvalidRequest, match="ws addresses only"):
        connected(Metrics("chain"), "wss://one.example")


async def test_another_abi_than_the_wanted_one_is_refused(devnet: Devnet) -> None:
    async with connected(Metrics("chain"), devnet.url, abi="v2") as connection:
        with pytest.raises(Rejected, match=r'chain\.abi is "v2"'):
            await connection.check(devnet.deployment)
