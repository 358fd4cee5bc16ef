"""Random fault schedules between the money process and a real chain: no wrong money, no person.

One schedule: a host with a new key follows anvil through one to three fault proxies while a renter
opens sessions and takes tokens. Every round each proxy gets a random fault or none. Real are the
ledger with its journal, watcher, runner, queue, sealing and the contracts; prover and storage are
fakes. After every round the ledger is held against the contracts' state, read past the proxies;
then the faults end, and within a bounded time everything served must be claimed and settled, except
sessions closed before a first claim, which are their renters' to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

from nodeapp.chain.connection import Connection
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.chain.runner import Runner, RunnerSettings
from nodeapp.chain.sealing import Sealer
from nodeapp.chain.watcher import Watcher
from nodeapp.core.errors import Corrupt, NodeError, Rejected, Unavailable, leaves
from nodeapp.core.ids import JobId, RequestId
from nodeapp.core.session import (
    Phase,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    Session,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import is_left_to_renter
from nodeapp.core.units import BlockNumber, PricePerToken, Tokens
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.devnet.anvil import find_anvil
from nodeapp.devnet.main import Devnet, DevnetOptions, running_devnet
from nodeapp.devnet.provision import HostOffer, provision_host, provision_renter
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import UNLIMITED, Calls, SessionTerms, approve
from nodeapp.evm.contracts import Contracts, SessionJob, SessionStatus
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.events import ProofSubmitted, SessionCreated
from nodeapp.evm.marketplace_events import MarketplaceEvents
from nodeapp.evm.transactions import Transactions
from nodeapp.rpc.prover import ProverClient
from nodeapp.rpc.storage import StorageClient
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import default_cache_dir
from nodeapp.service.settings import ChainSettings
from tests.benchmarks.report import Row, row
from tests.contracts.world import MODEL, RULES
from tests.fakes.fault_proxy import FAULTS, FaultProxy
from tests.fakes.sealing import FakeProver, FakeStorage

SCHEDULES = 60
ROUNDS = 8
DEPOSIT = 2_000_000
CLAIM_TOKENS = 100
POLL_SECONDS = 0.05
CALL_SECONDS = 0.4
ROUND_SECONDS = 0.25
RECOVERY_SECONDS = 60.0
PASSED_SECONDS = 20
"""Block time that goes by in a round."""
QUEUE = QueueSettings(poll_seconds=0.05, mined_seconds=3.0)


@dataclass
class Findings:
    """What was done, and what went wrong in words."""

    wrong_money: list[str] = field(default_factory=list)
    not_recovered: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    rounds: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    claims: int = 0
    sessions: int = 0
    recovery_seconds: list[float] = field(default_factory=list)


class Node:
    """The money process without its shell, on one journal."""

    def __init__(self, stage: Stage, directory: Path, urls: Sequence[str]) -> None:
        self._stage, self._directory = stage, directory
        self._settings = ChainSettings(
            rpc_urls=tuple(urls),
            chain_id=stage.deployment.chain_id,
            rpc_timeout_seconds=CALL_SECONDS,
            poll_seconds=POLL_SECONDS,
        )
        self.restarts: list[str] = []
        self._wanted = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """The process and what restarts it, as the supervisor does."""
        self._directory.mkdir()
        await self._open()
        try:
            async with asyncio.TaskGroup() as tasks:
                process = tasks.create_task(self._keep())
                yield self
                process.cancel()
        finally:
            await self.ledger.close()

    def kill(self) -> None:
        """End it at the next look at the chain; it comes back on its journal."""
        self._wanted.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._follow()
            except* _Killed:
                pass
            except* Corrupt as group:
                self.restarts += [error.message for error in leaves(group)]
                await asyncio.sleep(POLL_SECONDS)
            await self.ledger.close()
            await self._open()

    async def _open(self) -> None:
        stage, wallet = self._stage, self._stage.host
        self._wanted.clear()
        self.ledger = await Ledger.open(
            self._directory / "journal.db",
            owner=wallet.address,
            marker=self._directory / "marker",
        )
        self.connection = Connection(self._settings, SystemClock(), Metrics("chain"))
        contracts = Contracts(self.connection.provider, stage.deployment)
        steady = Contracts(self.connection.steady, stage.deployment)
        self._watcher = Watcher(self.ledger, steady, wallet.address, confirmations=1)
        queue = TransactionQueue(
            self.ledger,
            Transactions(self.connection.provider),
            wallet,
            confirmations=1,
            metrics=Metrics("chain"),
            settings=QUEUE,
        )
        self._runner = Runner(
            ledger=self.ledger,
            queue=queue,
            sealer=Sealer(
                cast("ProverClient", FakeProver()),
                cast("StorageClient", FakeStorage()),
                wallet,
                contracts,
            ),
            calls=Calls(stage.deployment),
            settings=RunnerSettings(CLAIM_TOKENS, RULES.dispute_window_seconds),
        )

    async def _follow(self) -> None:
        async with self.connection, asyncio.TaskGroup() as tasks:
            while not self._wanted.is_set():
                # Whatever is wrong with an endpoint, the next look comes.
                with contextlib.suppress(Rejected, Unavailable):
                    await self.connection.survey()
                    await self._watcher.step()
                if self._watcher.now is not None:
                    self._runner.consider(self._watcher.now.timestamp, tasks)
                await self.connection.wait()
            raise _Killed


class _Killed(Exception):
    """Cancels what is under way, as the end of the process does."""


@dataclass
class Stage:
    """One schedule's chain side: the truth, read and written past the proxies."""

    devnet: Devnet
    deployment: Deployment
    host: Wallet
    renter: Wallet
    contracts: Contracts
    transactions: Transactions

    async def open(self) -> None:
        """The renter pays for a session."""
        price = PricePerToken(2000)
        terms = SessionTerms(price, 86_400, Tokens(CLAIM_TOKENS), 3600)
        call = Calls(self.deployment).create_session(
            self.host.address, MODEL.model_id, self.deployment.usdc, DEPOSIT, terms
        )
        await self.transactions.send(call, self.renter)

    async def pass_time(self) -> None:
        """Block time goes by."""
        await self.devnet.provider.request("evm_increaseTime", [PASSED_SECONDS])
        await self.devnet.provider.request("evm_mine", [])

    async def jobs(self) -> dict[JobId, SessionJob]:
        """Every session of this host as the contract has it."""
        events = MarketplaceEvents(self.devnet.provider, self.deployment)
        head = await self.devnet.provider.block_number()
        found = await events.get_events(self.deployment.first_block, head, self.host.address)
        ids = [event.job_id for event in found if isinstance(event, SessionCreated)]
        return {job_id: await self.contracts.session(job_id) for job_id in ids}

    async def claims(self) -> list[ProofSubmitted]:
        """Every accepted claim of this host."""
        events = MarketplaceEvents(self.devnet.provider, self.deployment)
        head = await self.devnet.provider.block_number()
        found = await events.get_events(self.deployment.first_block, head, self.host.address)
        return [event for event in found if isinstance(event, ProofSubmitted)]


async def run(seeds: Sequence[int] = tuple(range(SCHEDULES)), rounds: int = ROUNDS) -> list[Row]:
    """Every seed is one schedule; the rows say what must be 0."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as directory:
        options = DevnetOptions(
            directory=Path(directory) / "devnet",
            anvil=find_anvil(default_cache_dir()),
            models=(MODEL,),
            block_time_seconds=0,
            rules=RULES,
        )
        async with running_devnet(options) as devnet:
            for seed in seeds:
                await _schedule(devnet, Path(directory) / str(seed), seed, rounds, findings)
    faults = sum(findings.faults.values())
    times = findings.recovery_seconds or [0.0]
    kinds = f"{len(findings.faults)} kinds of {len(FAULTS)}"
    seeds_note = f"seeds {min(seeds)} to {max(seeds)}"
    return [
        row("rpc fault schedules", len(seeds), "schedules", note=seeds_note),
        row("rpc faults injected", faults, "faults", note=kinds),
        row("rpc faults: sessions settled", findings.sessions, "sessions"),
        row("rpc faults: claims mined", findings.claims, "claims"),
        row("rpc faults: wrong money", len(findings.wrong_money), "cases", "== 0",
            "; ".join(findings.wrong_money[:3])),
        row("rpc faults: not recovered", len(findings.not_recovered), "schedules", "== 0",
            "; ".join(findings.not_recovered[:3])),
        row("rpc faults: crashes", len(findings.restarts), "crashes", "== 0",
            "; ".join(findings.restarts[:3])),
        row("rpc faults: slowest recovery", max(times), "s", f"<= {RECOVERY_SECONDS:g}"),
    ]  # fmt: skip


async def _schedule(
    devnet: Devnet, directory: Path, seed: int, rounds: int, findings: Findings
) -> None:
    rng = random.Random(seed)
    stage = await _stage(devnet)
    async with contextlib.AsyncExitStack() as stack:
        count = rng.choice((1, 2, 2, 3))
        proxies = [
            await stack.enter_async_context(FaultProxy(devnet.url).running()) for _ in range(count)
        ]
        node = Node(stage, directory, [proxy.url for proxy in proxies])
        await stack.enter_async_context(node.running())
        for _ in range(rounds):
            findings.rounds += 1
            for proxy in proxies:
                fault = rng.choice(FAULTS) if rng.random() < 0.6 else ""
                proxy.set(fault)
                if fault:
                    findings.faults[fault] = findings.faults.get(fault, 0) + 1
            if rng.random() < 0.15:
                node.kill()
            await _round(stage, node, rng)
            findings.wrong_money += [f"seed {seed}: {one}" for one in await _wrong(stage, node)]
        for proxy in proxies:
            proxy.set("")
        await _finish(stage, node, seed, findings)
        findings.restarts += [f"seed {seed}: {one}" for one in node.restarts]


async def _stage(devnet: Devnet) -> Stage:
    host, renter = new_wallet(), new_wallet()
    first = BlockNumber(await devnet.provider.block_number())
    deployment = _starting(devnet.deployment, first)
    await provision_host(
        devnet.provider, deployment, host, HostOffer((MODEL.model_id,), "http://127.0.0.1:1")
    )
    await provision_renter(devnet.provider, deployment, renter)
    transactions = Transactions(devnet.provider, poll_seconds=0.02)
    await transactions.send(approve(deployment.usdc, deployment.marketplace, UNLIMITED), renter)
    contracts = Contracts(devnet.provider, deployment)
    return Stage(devnet, deployment, host, renter, contracts, transactions)


def _starting(deployment: Deployment, first: BlockNumber) -> Deployment:
    values = {name: getattr(deployment, name) for name in deployment.__struct_fields__}
    return Deployment(**{**values, "first_block": first})


async def _round(stage: Stage, node: Node, rng: random.Random) -> None:
    """What people do while the endpoints are as they are."""
    if rng.random() < 0.5:
        await stage.open()
    for job_id, session in list(node.ledger.sessions.items()):
        if session.phase is not Phase.ACTIVE:
            continue
        with contextlib.suppress(NodeError):
            await _serve(node, job_id, session, rng.randrange(40, 300))
            if rng.random() < 0.4:
                await node.ledger.record(SessionClosing(job_id, "renter"))
    await stage.pass_time()
    await asyncio.sleep(ROUND_SECONDS)


async def _serve(node: Node, job_id: JobId, session: Session, tokens: int) -> None:
    """A prompt, its answer, the receipt."""
    terms, ids = session.terms, tuple(range(session.produced, session.produced + tokens))
    running = session.running_hash or initial_hash(terms.chain_id, terms.marketplace, job_id)
    request_id = RequestId(f"{session.produced:032x}")
    renter_key = session.renter_key or b"\x02" + bytes(31) + b"\x01"
    known = [] if session.renter_key else [RenterAuthenticated(job_id, renter_key)]
    await node.ledger.record(
        *known,
        RequestAuthorised(job_id, request_id, Tokens(tokens), b"sealed"),
        TokensProduced(job_id, request_id, ids),
        RenterSentReceipt(job_id, Tokens(ids[-1] + 1), extend_hash(running, ids), b"s" * 65),
        RequestEnded(job_id, request_id, "stop"),
    )


async def _wrong(stage: Stage, node: Node) -> list[str]:
    """Where the ledger says something that the contract does not."""
    sessions = dict(node.ledger.sessions)
    jobs = await stage.jobs()
    wrong: list[str] = []
    for job_id, session in sessions.items():
        job = jobs.get(job_id)
        if job is None:
            wrong.append(f"session {job_id} was never opened")
            continue
        terms = session.terms
        told = (terms.renter, terms.deposit, terms.price_per_token, terms.started_at)
        if told != (job.depositor, job.deposit, job.price_per_token, job.start_time):
            wrong.append(f"session {job_id} has other terms")
        if session.claimed > job.tokens_used:
            wrong.append(f"session {job_id}: {session.claimed} claimed, {job.tokens_used} mined")
        if job.tokens_used > session.acknowledged:
            wrong.append(f"session {job_id} overclaimed: {job.tokens_used}")
        if session.ended is not None:
            wrong += _wrong_end(session, job)
    return wrong


def _wrong_end(session: Session, job: SessionJob) -> list[str]:
    told = (session.host_earnings, session.refund)
    if job.status is SessionStatus.ACTIVE:
        return [f"session {job.job_id} has not ended"]
    if told != (job.host_share, job.refund):
        return [f"session {job.job_id} earned {job.host_share}, booked {told[0]}"]
    return []


async def _finish(stage: Stage, node: Node, seed: int, findings: Findings) -> None:
    """Close what is open, wait for the end of every session, judge it all."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(RECOVERY_SECONDS):
            while not await _is_settled(stage, node):
                for job_id, session in list(node.ledger.sessions.items()):
                    if session.phase is Phase.ACTIVE:
                        await node.ledger.record(SessionClosing(job_id, "renter"))
                await stage.pass_time()
                await asyncio.sleep(ROUND_SECONDS)
    except TimeoutError:
        sessions = [f"{job_id} {one.phase}" for job_id, one in node.ledger.sessions.items()]
        trouble = node.connection.summary()
        findings.not_recovered.append(f"seed {seed}: {', '.join(sessions)} {trouble}")
        return
    findings.recovery_seconds.append(loop.time() - began)
    claims = await stage.claims()
    wrong = await _wrong(stage, node)
    sealed = sum(len(session.claims) for session in node.ledger.sessions.values())
    if sealed != len(claims):
        wrong.append(f"{sealed} claims sealed, {len(claims)} mined")
    findings.wrong_money += [f"seed {seed}, at the end: {one}" for one in wrong]
    findings.claims += len(claims)
    findings.sessions += len(node.ledger.sessions)


async def _is_settled(stage: Stage, node: Node) -> bool:
    jobs, sessions = await stage.jobs(), node.ledger.sessions
    if sessions.keys() != jobs.keys():
        return False
    for job_id, session in sessions.items():
        if session.claimed != jobs[job_id].tokens_used:
            return False
        unclaimed = session.acknowledged - session.claimed
        if session.ended is None or unclaimed >= CLAIM_TOKENS:
            if is_left_to_renter(session):
                continue  # it was closed before a first claim: no host pays gas to end it
            return False
    return True
