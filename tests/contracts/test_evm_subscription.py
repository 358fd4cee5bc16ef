"""New heads ring over a real chain's WebSocket; what breaks is taken up again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from nodeapp.core.errors import InvalidRequest
from nodeapp.devnet.main import Devnet
from nodeapp.evm.subscription import NewHeads

SECONDS = 5.0


@contextlib.asynccontextmanager
async def listening(heads: NewHeads) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(heads.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until(condition) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_new_block_rings(devnet: Devnet) -> None:
    bell = asyncio.Event()
    heads = NewHeads([devnet.anvil.url.replace("http", "ws")], bell.set)
    async with listening(heads):
        await _until(lambda: heads.live)
        assert not bell.is_set()
        await devnet.provider.request("evm_mine", [])
        async with asyncio.timeout(SECONDS):
            await bell.wait()


@pytest.fixture
async def flaky() -> AsyncIterator[tuple[str, list[str]]]:
    """Its behaviour in order, one for each connection; the last one stays."""
    script = ["close", "garbage", "refuse", "silent", "ring"]

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        what = script.pop(0) if len(script) > 1 else script[0]
        if what == "garbage":
            await socket.send_str("[[]")
        if what == "refuse":
            await socket.send_str('{"id":1,"error":{"code":-32601,"message":"no"}}')
        if what in {"silent", "ring"}:
            await socket.send_str('{"jsonrpc":"2.0","id":1,"result":"0x5"}')
        if what == "ring":
            await socket.send_str('{"method":"eth_subscription","params":{"result":{}}}')
        if what != "close":
            await socket.receive()
        return socket

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"ws://127.0.0.1:{runner.addresses[0][1]}/secret-key", script
    await runner.cleanup()


async def test_a_broken_subscription_is_made_anew(flaky) -> None:
    url, script = flaky
    bell = asyncio.Event()
    heads = NewHeads([url], bell.set, silence_seconds=0.2, first_pause_seconds=0.02)
    async with listening(heads):
        async with asyncio.timeout(SECONDS):
            await bell.wait()
        assert script == ["ring"]
        assert [name.rpartition(":")[0] for name in heads.live] == ["ws://127.0.0.1"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:8546", ""])
def test_only_websocket_addresses_are_subscribed_to(url) -> None:
    with pytest.raises(InvalidRequest, match="is not ws or wss"):
        NewHeads([url], lambda: None)
