"""Failover between RPC endpoints, against a scripted far end on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from nodeapp.core.errors import InvalidRequest, Rejected, Unavailable
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Provider

CHAIN = 31337
UNREACHABLE = "http://127.0.0.1:9"
Asked = dict[str, Any]
Answer = Callable[[Asked], Awaitable[web.Response]]


@dataclass
class FakeRpc:
    """A JSON-RPC server that answers every method with `result`, or as `answer` says."""

    url: str = ""
    chain_id: int = CHAIN
    result: object = "0x1"
    answer: Answer | None = None
    methods: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        method = asked["method"]
        self.methods.append(method)
        if self.answer is not None:
            return await self.answer(asked)
        result = hex(self.chain_id) if method == "eth_chainId" else self.result
        return _result(asked, result)


def _result(asked: Asked, result: object) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": result})


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[FakeRpc]]]:
    runners: list[web.AppRunner] = []

    async def start_one(**settings: object) -> FakeRpc:
        fake = FakeRpc(**settings)
        app = web.Application()
        app.router.add_post("/{path:.*}", fake.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        fake.url = f"http://127.0.0.1:{port}/secret-key"
        return fake

    yield start_one
    for runner in runners:
        await runner.cleanup()


def _error(code: int, message: str) -> Answer:
    async def answer(asked: Asked) -> web.Response:
        if asked["method"] == "eth_chainId":
            return _result(asked, hex(CHAIN))
        error = {"code": code, "message": message}
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "error": error})

    return answer


def _text(status: int, body: str) -> Answer:
    async def answer(asked: Asked) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    return answer


async def test_an_unreachable_endpoint_is_skipped_and_then_rests(start) -> None:
    good = await start(result="0x2a")
    async with Provider([UNREACHABLE, good.url], chain_id=CHAIN) as provider:
        assert await provider.block_number() == 42
        assert await provider.block_number() == 42
    assert good.methods == ["eth_chainId", "eth_blockNumber", "eth_blockNumber"]


async def test_the_first_endpoint_is_preferred(start) -> None:
    first, second = await start(), await start()
    async with Provider([first.url, second.url], chain_id=CHAIN) as provider:
        await provider.block_number()
    assert second.methods == []


@pytest.mark.parametrize(
    "broken",
    [
        _text(500, "{}"),
        _text(429, "slow down"),
        _text(200, "<html>"),
        _text(200, "{}"),
        _text(200, "[]"),
        _error(-32005, "limit exceeded"),
    ],
)
async def test_a_broken_endpoint_is_skipped(start, broken: Answer) -> None:
    bad, good = await start(answer=broken), await start(result="0x7")
    async with Provider([bad.url, good.url], chain_id=CHAIN) as provider:
        assert await provider.block_number() == 7


async def test_a_slow_endpoint_is_left_at_the_deadline(start) -> None:
    never = asyncio.Event()

    async def hang(asked: Asked) -> web.Response:
        await never.wait()
        return web.Response()

    slow, good = await start(answer=hang), await start(result="0x7")
    async with Provider([slow.url, good.url], chain_id=CHAIN, call_timeout_seconds=0.2) as provider:
        assert await provider.block_number() == 7
    never.set()


async def test_no_endpoint_at_all_is_named_without_its_secret(start) -> None:
    bad = await start(answer=_text(503, "no"))
    async with Provider([UNREACHABLE, bad.url], chain_id=CHAIN) as provider:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9.*http status 503") as caught:
            await provider.block_number()
    assert "secret-key" not in str(caught.value)


async def test_another_chain_is_refused_with_both_ids(start) -> None:
    wrong = await start(chain_id=8453)
    async with Provider([wrong.url], chain_id=CHAIN) as provider:
        with pytest.raises(Rejected, match="serves chain id 8453, expected 31337"):
            await provider.block_number()


async def test_an_endpoints_refusal_is_no_reason_to_ask_the_next(start) -> None:
    first, second = await start(answer=_error(-32000, "nonce too low")), await start()
    async with Provider([first.url, second.url], chain_id=CHAIN) as provider:
        with pytest.raises(Rejected, match="eth_blockNumber refused: nonce too low"):
            await provider.block_number()
    assert second.methods == []


async def test_a_revert_without_data_is_still_a_revert(start) -> None:
    fake = await start(answer=_error(3, "execution reverted"))
    async with Provider([fake.url], chain_id=CHAIN) as provider:
        with pytest.raises(Reverted, match="thing reverted: no reason given"):
            await provider.request("eth_call", [], subject="thing")


async def test_a_block_that_is_not_there_is_unavailable(start) -> None:
    fake = await start(result="0x4")
    async with Provider([fake.url], chain_id=CHAIN) as provider:
        with pytest.raises(Unavailable, match="is at block 4, asked about block 5"):
            await provider.block(5)
    assert "eth_getBlockByNumber" not in fake.methods


@pytest.mark.parametrize("urls", [[], ["ftp://127.0.0.1"], ["127.0.0.1:8545"]])
def test_an_address_that_is_no_rpc_address_is_refused(urls: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        Provider(urls, chain_id=CHAIN)
