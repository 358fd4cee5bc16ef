"""A signer as Web3Signer's eth1 mode is one: real HTTP, real signatures, and ways to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from eth_hash.auto import keccak
from eth_keys.datatypes import PublicKey

from nodeapp.evm.accounts import Wallet


@dataclass
class RemoteSignerServer:
    """Signs whatever it is asked; `lie` changes the transaction, `other` signs instead."""

    wallet: Wallet
    chain_id: int
    other: Wallet | None = None
    refuse: str = ""
    lie: Mapping[str, object] = field(default_factory=dict)
    raw: bytes | None = None
    """What it answers instead of a transaction."""
    asked: list[str] = field(default_factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/", self._rpc),
                web.get("/api/v1/eth1/publicKeys", self._keys),
                web.post("/api/v1/eth1/sign/{key}", self._sign),
            ]
        )
        return app

    @property
    def _key(self) -> PublicKey:
        return PublicKey.from_compressed_bytes(self.wallet.public_key)

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response([self._key.to_hex()])

    async def _sign(self, request: web.Request) -> web.Response:
        if request.match_info["key"] != self._key.to_hex():
            return web.Response(status=404, text="no such key")
        data = bytes.fromhex((await request.json())["data"][2:])
        signer = self.other or self.wallet
        self.asked.append("sign")
        return web.Response(text="0x" + signer.sign_digest(keccak(data)).hex())

    async def _rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body["method"])
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": body["id"]}
        if self.refuse:
            error = {"code": -32000, "message": self.refuse}
            return web.json_response({**answer, "error": error})
        asked = body["params"][0]
        assert asked["from"] == self.wallet.address
        fields = {
            "type": 2,
            "chainId": self.chain_id,
            "to": asked["to"],
            "data": bytes.fromhex(asked["data"][2:]),
            **{
                name: int(asked[name], 16)
                for name in ("nonce", "value", "gas", "maxFeePerGas", "maxPriorityFeePerGas")
            },
            **self.lie,
        }
        if self.raw is not None:
            return web.json_response({**answer, "result": "0x" + self.raw.hex()})
        raw, _ = await (self.other or self.wallet).sign_transaction(fields)
        return web.json_response({**answer, "result": "0x" + raw.hex()})


@asynccontextmanager
async def serving(server: RemoteSignerServer, socket: Path | None = None) -> AsyncIterator[str]:
    """Its address: http on loopback, or a Unix socket."""
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)
    await runner.setup()
    try:
        if socket is not None:
            await web.UnixSite(runner, str(socket)).start()
            yield f"unix:{socket}"
        else:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
