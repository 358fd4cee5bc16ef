"""A whole marketplace chain in memory: blocks, transactions, reorgs, and the reads of a watcher.

It executes the marketplace's rules that decide who owns a job id and what is settled; a block keeps
the state it led to, so cutting blocks off takes everything back. Logs can be left out or doubled,
as endpoints do.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from nodeapp.core.errors import NotFound
from nodeapp.core.ids import Address, JobId, TxHash
from nodeapp.core.pricing import cost, settle
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, Tokens, Wei
from nodeapp.evm.contracts import SessionJob, SessionStatus
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.events import (
    LogPosition,
    MarketplaceEvent,
    ProofSubmitted,
    SessionCompleted,
    SessionCreated,
)
from nodeapp.evm.provider import Block
from tests.fakes.paid_session import CHAIN_ID, HOST, MARKET, terms

BLOCK_SECONDS = 2
DISPUTE_SECONDS = 4
FEE_BASIS_POINTS = 1000


@dataclass(frozen=True)
class Create:
    """A renter opens a session; `nonce` tells one deposit from another."""

    nonce: int
    host: Address = HOST
    deposit: int = 1_000_000


@dataclass(frozen=True)
class Prove:
    """submitProofOfWork."""

    job_id: JobId
    tokens: int
    proof_hash: bytes


@dataclass(frozen=True)
class Complete:
    """completeSessionJob."""

    job_id: JobId
    by_host: bool


Transaction = Create | Prove | Complete


def hash_of(transaction: Transaction) -> TxHash:
    """What names it on every branch."""
    return TxHash("0x" + hashlib.sha256(repr(transaction).encode()).hexdigest())


@dataclass
class MemoryBlock:
    """A block with the state after it; `failed` transactions are in it and did nothing."""

    header: Block
    transactions: tuple[Transaction, ...]
    failed: frozenset[TxHash]
    events: tuple[MarketplaceEvent, ...]
    jobs: dict[JobId, SessionJob]
    used: frozenset[bytes]


@dataclass
class MemoryChain:
    """`mine` and `cut` change it; the other public methods are what a watcher reads."""

    rng: random.Random
    deployment: Deployment = field(
        default_factory=lambda: Deployment(CHAIN_ID, *[MARKET] * 7)  # type: ignore[arg-type]
    )
    chain: list[MemoryBlock] = field(default_factory=list)
    losing: float = 0.0
    """Chance that a log is left out of an answer, and that it is doubled."""

    def __post_init__(self) -> None:
        header = Block(BlockNumber(0), "0xgenesis", "0x", BlockTime(1_000_000), Wei(0))
        self.chain.append(MemoryBlock(header, (), frozenset(), (), {}, frozenset()))

    @property
    def provider(self) -> MemoryChain:
        """The watcher reads headers through its contracts' provider."""
        return self

    @property
    def head(self) -> MemoryBlock:
        """The newest block."""
        return self.chain[-1]

    def cut(self, depth: int) -> list[Transaction]:
        """Take the newest blocks off; returns their transactions, oldest first."""
        depth = min(depth, len(self.chain) - 1)
        gone = self.chain[len(self.chain) - depth :]
        del self.chain[len(self.chain) - depth :]
        return [transaction for block in gone for transaction in block.transactions]

    def mine(self, transactions: Iterable[Transaction] = ()) -> None:
        """One more block."""
        parent = self.head
        number = BlockNumber(parent.header.number + 1)
        header = Block(
            number,
            f"0x{number}-{self.rng.getrandbits(64):016x}",
            parent.header.hash,
            BlockTime(parent.header.timestamp + BLOCK_SECONDS),
            Wei(0),
        )
        run = _Run(header, dict(parent.jobs), set(parent.used))
        for transaction in transactions:
            run.execute(transaction)
        self.chain.append(
            MemoryBlock(
                header,
                tuple(run.done),
                frozenset(run.failed),
                tuple(run.events),
                run.jobs,
                frozenset(run.used),
            )
        )

    def receipt(self, tx_hash: TxHash) -> tuple[BlockNumber, bool] | None:
        """Block and success of a transaction."""
        for block in reversed(self.chain):
            if any(hash_of(one) == tx_hash for one in block.transactions):
                return block.header.number, tx_hash not in block.failed
        return None

    async def block(self, tag: BlockNumber | str = "latest") -> Block:
        return self._at(tag).header

    async def blocks(self, numbers: Iterable[BlockNumber]) -> dict[BlockNumber, Block]:
        return {number: self._at(number).header for number in numbers}

    async def is_paused(self, block: BlockNumber) -> bool:
        return False

    async def session(self, job_id: JobId, block: BlockNumber) -> SessionJob:
        try:
            return self._at(block).jobs[job_id]
        except KeyError as error:
            raise NotFound(f"session {job_id} does not exist") from error

    async def get_session_events(
        self, first: BlockNumber, last: BlockNumber, host: Address, jobs: Collection[JobId]
    ) -> tuple[MarketplaceEvent, ...]:
        own = set(jobs)
        found: list[MarketplaceEvent] = []
        for block in self.chain[first : last + 1]:
            for event in block.events:
                is_ours = getattr(event, "host", None) == host
                if isinstance(event, SessionCreated):
                    own |= {event.job_id} if is_ours else set()
                elif isinstance(event, SessionCompleted):
                    is_ours = event.job_id in own
                if is_ours and self.rng.random() >= self.losing:
                    found += [event] * (2 if self.rng.random() < self.losing else 1)
        return tuple(found)

    def _at(self, tag: BlockNumber | str) -> MemoryBlock:
        return self.head if isinstance(tag, str) else self.chain[tag]


@dataclass
class _Run:
    header: Block
    jobs: dict[JobId, SessionJob]
    used: set[bytes]
    events: list[MarketplaceEvent] = field(default_factory=list)
    done: list[Transaction] = field(default_factory=list)
    failed: set[TxHash] = field(default_factory=set)

    def execute(self, transaction: Transaction) -> None:
        self.done.append(transaction)
        tx_hash = hash_of(transaction)
        at = LogPosition(self.header.number, self.header.hash, tx_hash, len(self.events))
        event = self._event(transaction, at)
        if event is None:
            self.failed.add(tx_hash)
        else:
            self.events.append(event)

    def _event(self, transaction: Transaction, at: LogPosition) -> MarketplaceEvent | None:
        match transaction:
            case Create():
                return self._create(transaction, at)
            case Prove():
                return self._prove(transaction, at)
            case Complete():
                return self._complete(transaction, at)

    def _create(self, create: Create, at: LogPosition) -> MarketplaceEvent:
        job_id = JobId(len(self.jobs) + 1)
        chosen = terms(deposit=create.deposit, price=1_000, job_id=job_id)
        self.jobs[job_id] = SessionJob(
            job_id=job_id,
            depositor=Address(f"0x{create.nonce:040x}"),
            host=create.host,
            payment_asset=chosen.asset,
            deposit=chosen.deposit,
            price_per_token=chosen.price_per_token,
            tokens_used=Tokens(0),
            max_duration_seconds=chosen.max_duration_seconds,
            start_time=self.header.timestamp,
            last_proof_time=self.header.timestamp,
            proof_interval=chosen.proof_interval,
            proof_timeout_seconds=chosen.proof_timeout_seconds,
            status=SessionStatus.ACTIVE,
            host_share=BaseUnits(0),
            refund=BaseUnits(0),
            conversation_cid="",
            last_proof_hash=bytes(32),
            last_proof_cid="",
            model_id=chosen.model_id,
        )
        job = self.jobs[job_id]
        return SessionCreated(at, job_id, job.depositor, job.host, job.model_id, job.deposit)

    def _prove(self, prove: Prove, at: LogPosition) -> MarketplaceEvent | None:
        job = self._active(prove.job_id)
        if job is None or job.host != HOST or prove.proof_hash in self.used:
            return None
        tokens = Tokens(job.tokens_used + prove.tokens)
        least = 100 if job.tokens_used else job.proof_interval
        if prove.tokens < least or cost(tokens, job.price_per_token) > job.deposit:
            return None
        self.used.add(prove.proof_hash)
        self.jobs[job.job_id] = replace(
            job, tokens_used=tokens, last_proof_time=self.header.timestamp
        )
        return ProofSubmitted(
            at, job.job_id, job.host, Tokens(prove.tokens), prove.proof_hash, "b", "b"
        )

    def _complete(self, complete: Complete, at: LogPosition) -> MarketplaceEvent | None:
        job = self._active(complete.job_id)
        if job is None:
            return None
        if complete.by_host and self.header.timestamp < job.last_proof_time + DISPUTE_SECONDS:
            return None
        shares = settle(
            job.deposit,
            job.tokens_used,
            job.price_per_token,
            fee_basis_points=FEE_BASIS_POINTS,
        )
        self.jobs[job.job_id] = replace(
            job, status=SessionStatus.COMPLETED, host_share=shares.host, refund=shares.refund
        )
        pay = cost(job.tokens_used, job.price_per_token)
        return SessionCompleted(at, job.job_id, job.host, job.tokens_used, pay, shares.refund)

    def _active(self, job_id: JobId) -> SessionJob | None:
        job = self.jobs.get(job_id)
        return job if job is not None and job.status is SessionStatus.ACTIVE else None
