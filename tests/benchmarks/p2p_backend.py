"""What stands behind the measured p2p process: the real ledger, and an engine that keeps time.

    python -m tests.benchmarks.p2p_backend --dir DIR --renters N --tokens-per-second R

Chain and inference sockets in DIR/run. Sessions 1..N belong to the wallets of `renter_wallet`. The
engine makes one token every 1/R s for each request; its text says when it was made, in CLOCK_MONOTONIC
nanoseconds, so that the receiver knows how long it was on its way.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from eth_account import Account

from nodeapp.chain.desk import Desk
from nodeapp.chain.ledger import Ledger
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.session import ContractReceiveSessionOpened, Terms
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, PricePerToken, Tokens
from nodeapp.evm.accounts import Wallet
from nodeapp.service.clock import SystemClock
from nodeapp.service.server import endpoint, errors_to_replies, query, stream_endpoint
from nodeapp.wire import ipc_chain as wire
from nodeapp.wire.ipc_inference import (
    Event,
    Finished,
    GenerateRequest,
    ModelFacts,
    Models,
    ModelState,
    Produced,
    Started,
)
from nodeapp.wire.ipc_listing import ListingVersion, ListingVersionRequest
from nodeapp.wire.signed import capability_digest, domain_separator

CHAIN_ID = 31337
MARKET = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
USDC = Address("0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512")
MODEL = ModelId("0x" + "ab" * 32)
DEPOSIT = BaseUnits(1_000_000_000)
PRICE = PricePerToken(2000)


def host_wallet(name: str = "") -> Wallet:
    """Fixed, so that every process of the benchmark knows it; names are for further hosts."""
    return _wallet(f"bench host {name}".strip())


def renter_wallet(number: int) -> Wallet:
    """Of session `number`, 1 and up."""
    return _wallet(f"bench renter {number}")


def _wallet(name: str) -> Wallet:
    return Wallet(Account.from_key(hashlib.sha256(name.encode()).digest()))


class Chain:
    """The chain process without a chain: sessions are there from the start."""

    def __init__(self, ledger: Ledger, wallet: Wallet) -> None:
        self._desk = Desk(ledger, SystemClock())
        self._wallet = wallet

    def routes(self) -> list[web.RouteDef]:
        desk = self._desk
        return [
            web.get("/v1/host", query(self.host)),
            web.post("/v1/listing/version", endpoint(ListingVersionRequest, self.never)),
            web.post("/v1/session/open", endpoint(wire.OpenSessionRequest, desk.open_session)),
            web.post("/v1/session/view", endpoint(wire.JobRequest, desk.view)),
            web.post("/v1/session/close", endpoint(wire.JobRequest, desk.close_session)),
            web.post("/v1/request/authorise", endpoint(wire.AuthoriseRequest, desk.authorise)),
            web.post("/v1/request/produced", endpoint(wire.ProducedRequest, desk.produced)),
            web.post(
                "/v1/request/produced-together",
                endpoint(wire.ProducedBatch, desk.produced_together),
            ),
            web.post("/v1/request/end", endpoint(wire.EndRequest, desk.end_request)),
            web.post("/v1/receipt", endpoint(wire.ReceiptRequest, desk.receipt)),
            web.post("/v1/receipts", endpoint(wire.ReceiptBatch, desk.receipts)),
            web.post("/v1/sign/record", endpoint(wire.SignRecordRequest, self.sign)),
        ]

    async def never(self, _request: ListingVersionRequest) -> ListingVersion:
        await asyncio.Event().wait()
        raise AssertionError

    async def host(self) -> wire.HostView:
        return wire.HostView(
            address=self._wallet.address,
            public_key=self._wallet.public_key,
            chain_id=CHAIN_ID,
            marketplace=MARKET,
            block_number=1,
            block_time=1,
            is_registered=True,
            model_ids=(MODEL,),
            usdc=USDC,
            prices=(PRICE,),
        )

    async def sign(self, request: wire.SignRecordRequest) -> wire.Signature:
        separator = domain_separator(CHAIN_ID, MARKET)
        return wire.Signature(
            self._wallet.sign_digest(capability_digest(separator, request.record))
        )


class Engine:
    """Tokens at a steady pace; those of all requests in the same steps, as a batching engine's."""

    def __init__(self, tokens_per_second: float) -> None:
        self._period = 1.0 / tokens_per_second

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models/facts", query(self.models)),
            web.get("/v1/models/state", query(self.state)),
            web.post("/v1/generate", stream_endpoint(GenerateRequest, self.generate)),
        ]

    async def models(self) -> Models:
        facts = ModelFacts(
            str(MODEL),
            "bench/bench",
            "bench.gguf",
            "cd" * 32,
            1,
            "llama",
            "Q4_1",
            8192,
            8192,
            49152,
        )
        return Models((facts,))

    async def state(self) -> ModelState:
        return ModelState("bench", "serving", "", slots=64)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        yield Started(10, 8192)
        begun = math.ceil(time.monotonic() / self._period) * self._period
        for number in range(request.max_tokens):
            # The first comes when its own prompt is computed, whatever step the others are at.
            due = begun + number * self._period if number else 0.0
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield Produced((number % 40_000,), f"{time.monotonic_ns()} ")
        yield Finished("length", request.max_tokens)


async def serve(
    directory: Path, renters: int, tokens_per_second: float, host_name: str = ""
) -> None:
    """Until the process is ended."""
    run = directory / "run"
    run.mkdir(parents=True, exist_ok=True)
    wallet = host_wallet(host_name)
    host = wallet.address
    ledger = await Ledger.open(
        directory / "bench.journal", owner=host, marker=directory / "bench.marker"
    )
    await ledger.record(*(opened(number, host) for number in range(1, renters + 1)))
    engine = Engine(tokens_per_second)
    for name, routes in (("chain", Chain(ledger, wallet).routes()), ("inference", engine.routes())):
        app = web.Application(middlewares=[errors_to_replies], client_max_size=16 << 20)
        app.add_routes(routes)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.UnixSite(runner, str(run / f"{name}.sock")).start()
    await asyncio.Event().wait()


def opened(number: int, host: Address) -> ContractReceiveSessionOpened:
    terms = Terms(
        chain_id=CHAIN_ID,
        marketplace=MARKET,
        job_id=JobId(number),
        renter=renter_wallet(number).address,
        host=host,
        model_id=MODEL,
        asset=USDC,
        deposit=DEPOSIT,
        price_per_token=PRICE,
        proof_interval=Tokens(1000),
        proof_timeout_seconds=3600,
        max_duration_seconds=86_400,
        started_at=BlockTime(int(time.time())),
    )
    return ContractReceiveSessionOpened(JobId(number), terms, BlockNumber(1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--renters", type=int, required=True)
    parser.add_argument("--tokens-per-second", type=float, required=True)
    asked = parser.parse_args()
    asyncio.run(serve(asked.dir, asked.renters, asked.tokens_per_second))


if __name__ == "__main__":
    main()
