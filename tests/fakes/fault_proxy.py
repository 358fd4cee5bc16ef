"""A JSON-RPC endpoint on loopback that hands on to a real node, and lies or fails when told to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

HEADER_METHODS = {"eth_getBlockByNumber", "eth_getBlockByHash"}
TRANSPORT_FAULTS = ("down", "limited", "slow", "html", "truncated", "wrong_id", "busy", "cut")
LIES = (
    "wrong_chain",
    "null_receipts",
    "ahead",
    "behind",
    "stuck",
    "duplicated_logs",
    "missing_logs",
    "invented_logs",
    "other_hash",
    "small_ranges",
    "wrong_shape",
)
FORGED_READS = "forged_reads"
"""Not among FAULTS: from one endpoint alone nobody can tell it from the truth."""
FAULTS = (*TRANSPORT_FAULTS, *LIES)
AHEAD_BLOCKS = 1000
BEHIND_BLOCKS = 3
SMALL_RANGE = 4


class FaultProxy:
    """`fault` "" hands on everything; set it at any time."""

    def __init__(self, upstream: str) -> None:
        self.url = ""
        self.fault = ""
        self.requests = 0
        self.methods: list[str] = []
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None
        self._stuck_at: int | None = None
        self._leaving = asyncio.Event()

    def set(self, fault: str) -> None:
        """Begin a fault, or end it with ""."""
        self.fault, self._stuck_at = fault, None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Serve until the block ends."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/secret-key"
        async with aiohttp.ClientSession() as self._session:
            try:
                yield self
            finally:
                self._leaving.set()
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        self.requests += 1
        many = asked if isinstance(asked, list) else [asked]
        self.methods += [one["method"] for one in many]
        fault = self.fault
        refused = await self._transport(fault, request)
        if refused is not None:
            return refused
        answers = [await self._answer(one, fault) for one in many]
        text = json.dumps(answers if isinstance(asked, list) else answers[0])
        if fault == "truncated":
            text = text[: len(text) // 2]
        return web.Response(text=text, content_type="application/json")

    async def _transport(self, fault: str, request: web.Request) -> web.Response | None:
        match fault:
            case "down" | "cut":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            case "limited":
                return web.Response(status=429, headers={"Retry-After": "1"}, text="slow down")
            case "busy":
                return web.Response(status=503, text="{}")
            case "html":
                return web.Response(text="<html>Just a moment</html>", content_type="text/html")
            case "slow":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(30):
                        await self._leaving.wait()
            case _:
                pass
        return None

    async def _answer(self, asked: dict[str, Any], fault: str) -> dict[str, Any]:
        method, params = asked["method"], asked["params"]
        head = await self._head() if fault in {"behind", "stuck", "ahead"} else 0
        answer = await self._special(method, params, fault, head)
        if answer is None:
            answer = await self.ask(method, params)
        answer = {**_bent(method, answer, fault), "jsonrpc": "2.0", "id": asked["id"]}
        if fault == "wrong_id":
            answer["id"] = asked["id"] + 7
        return answer

    async def _special(
        self, method: str, params: list[Any], fault: str, head: int
    ) -> dict[str, Any] | None:
        if fault == "wrong_chain" and method == "eth_chainId":
            return {"result": "0x2105"}
        if fault == "wrong_shape" and method != "eth_chainId":
            return {"result": {"what": ["is", "this"]}}
        if fault == "small_ranges" and method == "eth_getLogs":
            span = int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) + 1
            if span > SMALL_RANGE:
                message = f"exceed maximum block range: {SMALL_RANGE}"
                return {"error": {"code": -32000, "message": message}}
        if fault in {"behind", "stuck"}:
            return await self._late(method, params, self._late_head(fault, head))
        if fault == "ahead":
            return await self._early(method, params, head)
        return None

    def _late_head(self, fault: str, head: int) -> int:
        if fault == "behind":
            return max(0, head - BEHIND_BLOCKS)
        if self._stuck_at is None:
            self._stuck_at = head
        return self._stuck_at

    async def _late(self, method: str, params: list[Any], head: int) -> dict[str, Any] | None:
        """Of the blocks above its head it knows nothing, and says so with empty answers."""
        if method == "eth_blockNumber":
            return {"result": hex(head)}
        if method == "eth_getBlockByNumber":
            if params[0] in {"latest", "pending"}:
                return await self.ask(method, [hex(head), params[1]])
            return {"result": None} if int(params[0], 16) > head else None
        if method == "eth_getLogs" and int(params[0]["toBlock"], 16) > head:
            return await self.ask(method, [{**params[0], "toBlock": hex(head)}])
        if method in {"eth_call", "eth_getBalance"} and params[1] in {"latest", "pending"}:
            return await self.ask(method, [params[0], hex(head)])
        if method == "eth_getTransactionReceipt":
            found = await self.ask(method, params)
            receipt = found.get("result")
            is_later = receipt is not None and int(receipt["blockNumber"], 16) > head
            return {"result": None} if is_later else found
        return None

    async def _early(self, method: str, params: list[Any], head: int) -> dict[str, Any] | None:
        """Blocks that nobody made."""
        if method == "eth_blockNumber":
            return {"result": hex(head + AHEAD_BLOCKS)}
        if method == "eth_getBlockByNumber":
            number = head + AHEAD_BLOCKS if params[0] == "latest" else _number(params[0])
            if number is not None and number > head:
                block = (await self.ask(method, ["latest", params[1]]))["result"]
                return {"result": {**block, "number": hex(number), "hash": _other(hex(number))}}
        if method == "eth_getLogs":
            last = min(head, int(params[0]["toBlock"], 16))
            return await self.ask(method, [{**params[0], "toBlock": hex(last)}])
        return None

    async def _head(self) -> int:
        return int((await self.ask("eth_blockNumber", []))["result"], 16)

    async def ask(self, method: str, params: list[Any]) -> dict[str, Any]:
        """The real node's answer."""
        assert self._session is not None
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with self._session.post(self._upstream, json=body) as reply:
            answer: dict[str, Any] = await reply.json()
        return {key: answer[key] for key in ("result", "error") if key in answer}


def _number(tag: str) -> int | None:
    return int(tag, 16) if tag.startswith("0x") else None


def _other(text: str) -> str:
    return "0x" + hashlib.sha256(text.encode()).hexdigest()


def _bent(method: str, answer: dict[str, Any], fault: str) -> dict[str, Any]:
    result = answer.get("result")
    if result is None:
        return answer
    if fault == "null_receipts" and method == "eth_getTransactionReceipt":
        return {"result": None}
    if fault == "other_hash" and method in HEADER_METHODS:
        return {"result": {**result, "hash": _other(result["hash"])}}
    if fault == FORGED_READS and method == "eth_call" and len(result) > 2:
        return {"result": result[:-2] + f"{int(result[-2:], 16) ^ 1:02x}"}
    if method != "eth_getLogs":
        return answer
    if fault == "duplicated_logs":
        return {"result": [*result, *result]}
    if fault == "missing_logs":
        return {"result": result[1:]}
    if fault == "invented_logs" and result:
        invented = {**result[-1], "logIndex": hex(int(result[-1]["logIndex"], 16) + 1)}
        return {"result": [*result, invented]}
    return answer
