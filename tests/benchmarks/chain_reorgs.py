"""Random reorg scripts: after every one of them the ledger holds what a fresh sync would give.

A script lets a host serve, claim and settle on a chain in memory while blocks are cut off (up to 64
deep) and mined again with their transactions moved, reordered or left out; logs are left out and
doubled, the ledger is closed and opened in between. Real are the ledger with its journal, the
watcher and every rule; only the chain is made up. Judged at the end: chain facts equal those of a
new ledger that reads the chain once, no local fact was lost, nothing was claimed that was not
acknowledged, a reopened ledger is the same.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nodeapp.chain.ledger import Entry, Ledger, TransactionMined, TransactionSigned
from nodeapp.chain.watcher import Watcher
from nodeapp.core.errors import Rejected
from nodeapp.core.ids import Address, Cid, JobId, RequestId, TxHash
from nodeapp.core.outbox import TransactionDropped
from nodeapp.core.session import (
    ClaimPrepared,
    ClaimSealed,
    EarningsWithdrawn,
    Phase,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    Session,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import (
    CompleteSession,
    PrepareClaim,
    SealClaim,
    SubmitClaim,
    TriggerTimeout,
    WithdrawEarnings,
    next_step,
)
from nodeapp.core.units import Tokens, Wei
from nodeapp.core.usage import extend_hash
from tests.benchmarks.report import Row, row
from tests.fakes.ledger_facts import all_of, chain_facts, identity
from tests.fakes.memory_chain import (
    DISPUTE_SECONDS,
    Complete,
    Create,
    MemoryChain,
    Prove,
    Transaction,
    hash_of,
)
from tests.fakes.paid_session import HOST, claim_of

WINDOW = 64
STEPS = 60
LAGGING_BLOCKS = 8
FOREIGN = Address("0x" + "f0" * 20)


@dataclass
class Outcome:
    """What one script did."""

    seed: int
    reorgs: int = 0
    deepest: int = 0
    vanished: int = 0
    moved: int = 0
    """Sessions that came again in another block."""
    claims: int = 0
    given_up: int = 0
    """Sessions whose creation did not come again within the window."""
    faults: list[str] = field(default_factory=list)


@dataclass
class Script:
    """One host on one chain."""

    seed: int
    directory: Path

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.chain = MemoryChain(random.Random(self.seed + 1))
        self.pool: list[Transaction] = []
        self.sent: dict[TxHash, Transaction] = {}
        self.outcome = Outcome(self.seed)
        self.created = 0
        self.lost = False
        self.followed_reorgs = 0
        self.served: dict[tuple[str, int], tuple[int, ...]] = {}
        """By renter and job id: every id the renter acknowledged."""
        self.blocks_of: dict[tuple[str, int], set[int]] = {}

    async def run(self) -> Outcome:
        """Play it and judge."""
        self.ledger = await self._open("journal.sqlite")
        self.watcher = self._watch(self.ledger)
        try:
            for _ in range(STEPS):
                await self._turn()
            await self._come_to_rest()
            await self._judge()
        finally:
            await self.ledger.close()
        return self.outcome

    async def _open(self, name: str) -> Ledger:
        marker = self.directory / f"{name}.marker"
        return await Ledger.open(self.directory / name, owner=HOST, marker=marker)

    def _watch(self, ledger: Ledger) -> Watcher:
        watcher = Watcher(ledger, self.chain, HOST, confirmations=1, window_blocks=WINDOW)  # type: ignore[arg-type]
        watcher._events = self.chain  # type: ignore[assignment]
        return watcher

    async def _turn(self) -> None:
        choice = self.rng.random()
        if choice < 0.12:
            self._reorganise()
        elif choice < 0.16:
            await self._restart()
        elif choice < 0.3:
            self._open_session()
        else:
            for _ in range(self.rng.choice((1, 1, 2, 5))):
                self._mine()
        if self.rng.random() < 0.7:
            await self._follow(losing=self._losing())
            await self._serve()
            await self._settle()

    def _losing(self) -> float:
        """An index that lags shows the newest blocks without their logs, and with them later."""
        cursor = self.ledger.cursor
        is_near = (
            cursor is not None
            and self.outcome.reorgs == self.followed_reorgs
            and len(self.chain.chain) - 1 - cursor.block_number <= LAGGING_BLOCKS
        )
        self.followed_reorgs = self.outcome.reorgs
        self.lost = is_near and not self.lost and self.rng.random() < 0.5
        return 0.3 if self.lost else 0.0

    def _open_session(self) -> None:
        self.created += 1
        host = HOST if self.rng.random() < 0.7 else FOREIGN
        self.pool.append(Create(self.created, host, self.rng.choice((1_000_000, 400))))

    def _mine(self) -> None:
        chosen = [one for one in self.pool if self.rng.random() < 0.6]
        self.pool = [one for one in self.pool if one not in chosen]
        if self.rng.random() < 0.3:
            self.rng.shuffle(chosen)
        self.chain.mine(chosen)

    def _reorganise(self) -> None:
        # The anchor of the window is where the journal can go back to, never below it.
        cursor = self.ledger.cursor
        followed = cursor.block_number if cursor else 0
        ahead = len(self.chain.chain) - 1 - followed
        depth = self.rng.choice((1, 1, 2, 4, 8, WINDOW))
        floor = max(self.ledger.view.final, 0)
        depth = min(depth, len(self.chain.chain) - 1 - floor)
        gone = self.chain.cut(depth)
        self.outcome.reorgs += depth > 0
        self.outcome.deepest = max(self.outcome.deepest, depth - max(0, ahead))
        if self.rng.random() < 0.4:
            self.rng.shuffle(gone)
        kept = [one for one in gone if not (isinstance(one, Create) and self.rng.random() < 0.25)]
        self.pool = list(dict.fromkeys([*kept, *self.pool]))
        for _ in range(max(0, depth - self.rng.choice((0, 0, 1)))):
            self._mine()

    async def _restart(self) -> None:
        before = all_of(self.ledger)
        if self.rng.random() < 0.5:
            await self.ledger.checkpoint()
            before = all_of(self.ledger)
        await self.ledger.close()
        self.ledger = await self._open("journal.sqlite")
        if all_of(self.ledger) != before:
            self.outcome.faults.append("the reopened ledger is another one")
        self.watcher = self._watch(self.ledger)

    async def _follow(self, *, losing: float = 0.0) -> None:
        self.chain.losing = losing
        await self.watcher.step()
        self.chain.losing = 0.0

    async def _serve(self) -> None:
        """Every open session gets a request now and then, answered and mostly acknowledged."""
        for job_id, session in list(self.ledger.unsettled.items()):
            if session.phase is not Phase.ACTIVE or self.rng.random() < 0.5:
                continue
            count = min(self.rng.randint(20, 160), session.affordable - session.acknowledged)
            request = RequestId(f"{self.rng.getrandbits(128):032x}")
            ids = tuple(self.rng.randrange(50_000) for _ in range(count))
            taken = ids[: self.rng.choice((count, count // 2))]
            entries: list[Entry] = [
                RequestAuthorised(job_id, request, Tokens(count), b"sealed"),
                TokensProduced(job_id, request, ids),
                RenterSentReceipt(
                    job_id,
                    Tokens(session.acknowledged + len(taken)),
                    extend_hash(session.running_hash, taken),
                    b"signed",
                ),
                RequestEnded(job_id, request, "stop"),
            ]
            if self.rng.random() < 0.15:
                entries.append(SessionClosing(job_id, "renter"))
            if count > 0 and await self._accepts(entries):
                key = identity(session)
                self.served[key] = self.served.get(key, ()) + taken

    async def _accepts(self, entries: Sequence[Entry]) -> bool:
        try:
            await self.ledger.record(*entries)
        except Rejected:
            return False
        return True

    async def _settle(self) -> None:
        """What the runner and the queue do, without waiting."""
        await self._read_receipts()
        now = self.watcher.now
        if now is None:
            return
        for job_id in list(self.ledger.unsettled):
            self._note(self.ledger.session(job_id))
            for _ in range(4):
                session = self.ledger.session(job_id)
                step = next_step(
                    session,
                    now.timestamp,
                    interval_tokens=150,
                    dispute_window_seconds=DISPUTE_SECONDS,
                )
                match step:
                    case PrepareClaim(tokens=tokens):
                        await self.ledger.record(ClaimPrepared(job_id, claim_of(session, tokens)))
                    case SealClaim(claim=claim):
                        await self.ledger.record(self._sealed(job_id, claim.interval))
                    case SubmitClaim(claim=claim):
                        prove = Prove(job_id, claim.tokens, claim.proof_hash)
                        await self._send(f"claim/{job_id}/{claim.interval}", prove)
                        break
                    case CompleteSession() | TriggerTimeout():
                        await self._send(f"complete/{job_id}", Complete(job_id, by_host=True))
                        break
                    case WithdrawEarnings():
                        await self.ledger.record(
                            EarningsWithdrawn(job_id, session.host_earnings, now.number)
                        )
                    case _:
                        break

    def _sealed(self, job_id: JobId, interval: int) -> ClaimSealed:
        return ClaimSealed(
            job_id=job_id,
            interval=interval,
            proof_hash=self.rng.randbytes(32),
            proof_cid=Cid("b"),
            transcript_cid=Cid("b"),
            last_commitment=self.rng.randbytes(32),
            proofs=1,
            proof_bytes=1,
            prove_cpu_seconds=0.0,
        )

    async def _send(self, key: str, transaction: Transaction) -> None:
        """Once a key; what a reorg took out is put back into the pool by the chain itself."""
        if key in self.ledger.mined:
            return
        errand = self.ledger.outbox.pending.get(key)
        if errand is None:
            tx_hash = hash_of(transaction)
            held = [one.nonce for one in self.ledger.outbox.pending.values()]
            recent = [one.nonce for one in self.ledger.outbox.recent]
            nonce = max([self.ledger.outbox.first_nonce - 1, *held, *recent]) + 1
            signed = TransactionSigned(key, nonce, tx_hash, b"raw", Wei(1), Wei(1))
            await self.ledger.record(signed)
        else:
            transaction = self.sent.get(errand.newest.tx_hash, transaction)
        self.sent[hash_of(transaction)] = transaction
        if transaction not in self.pool and self.chain.receipt(hash_of(transaction)) is None:
            self.pool.append(transaction)

    async def _read_receipts(self) -> None:
        cursor = self.ledger.cursor
        for key, errand in list(self.ledger.outbox.pending.items()):
            found = self.chain.receipt(errand.newest.tx_hash)
            if found is None or cursor is None or found[0] > cursor.block_number:
                continue
            block, succeeded = found
            if succeeded:
                end: Entry = TransactionMined(key, errand.newest.tx_hash, 1, block)
            else:
                end = TransactionDropped(
                    key, "reverted", errand.newest.tx_hash, 1, block, cost=Wei(1)
                )
            await self.ledger.record(end)

    def _note(self, session: Session) -> None:
        if session.opened_in is None:
            self.outcome.vanished += 1
            return
        self.blocks_of.setdefault(identity(session), set()).add(session.opened_in)

    async def _come_to_rest(self) -> None:
        for _ in range(16):
            self.chain.mine(self.pool)
            self.pool = []
            await self._follow()
            await self._settle()
        self.chain.mine(self.pool)
        await self._follow()
        await self._read_receipts()

    async def _judge(self) -> None:
        fresh = await self._open("fresh.sqlite")
        watcher = self._watch(fresh)
        await watcher.step()
        ours, theirs = await chain_facts(self.ledger), await chain_facts(fresh)
        await fresh.close()
        faults = self.outcome.faults
        faults += [
            f"session {job}: not as a fresh sync" for job in ours if ours[job] != theirs.get(job)
        ]
        faults += [f"session {job} is unknown" for job in theirs.keys() - ours.keys()]
        given_up = {
            identity(one.session): one.session.acknowledged
            for _, one in await self.ledger.archive_after(0, 10_000)
            if one.session.opened_in is None
        }
        self.outcome.given_up = len(given_up)
        for session in [*self.ledger.sessions.values(), *self.ledger.parked]:
            self._judge_session(session, given_up.get(identity(session), 0))
        for mined in self.ledger.mined.values():
            found = self.chain.receipt(mined.tx_hash)
            if found != (mined.block_number, True):
                faults.append(f"{mined.key} counts as mined in {mined.block_number}: {found}")
        self.outcome.moved = sum(len(blocks) > 1 for blocks in self.blocks_of.values())
        await self._restart()

    def _judge_session(self, session: Session, given_up: int) -> None:
        faults, job_id = self.outcome.faults, session.terms.job_id
        acknowledged = len(self.served.get(identity(session), ())) - given_up
        if session.acknowledged != acknowledged:
            faults.append(f"session {job_id} knows {session.acknowledged} of {acknowledged} tokens")
        own = {claim.proof_hash: claim.tokens for claim in session.claims}
        accepted = [proof for proof in session.proofs if proof.proof_hash in own]
        if sum(claim.tokens for claim in session.claims) > acknowledged:
            faults.append(f"session {job_id} claims more than was acknowledged")
        if any(proof.tokens != own[proof.proof_hash] for proof in accepted):
            faults.append(f"session {job_id} has a claim of another size on chain")
        self.outcome.claims += len(accepted)


async def play(seed: int) -> Outcome:
    """One script."""
    with tempfile.TemporaryDirectory(prefix="reorgs-") as directory:
        return await Script(seed, Path(directory)).run()


async def run(scripts: int = 500, first_seed: int = 20_261_123) -> list[Row]:
    """Play the scripts and judge each; seeds are counted up from the first one."""
    outcomes = []
    for seed in range(first_seed, first_seed + scripts):
        outcomes.append(await play(seed))
    for outcome in outcomes:
        for fault in outcome.faults:
            print(f"seed {outcome.seed}: {fault}")
    seeds = f"seeds {first_seed} to {first_seed + scripts - 1}"
    return [
        row("reorg scripts", len(outcomes), "scripts", f">= {scripts}", seeds),
        row("reorgs", sum(one.reorgs for one in outcomes), "reorgs"),
        row("deepest reorg followed", max(one.deepest for one in outcomes), "blocks"),
        row("creations mined again in another block", sum(o.moved for o in outcomes), "sessions"),
        row("sessions seen without their creation", sum(o.vanished for o in outcomes), "times"),
        row("sessions archived as lost", sum(one.given_up for one in outcomes), "sessions"),
        row("claims accepted at the end", sum(one.claims for one in outcomes), "claims"),
        row(
            "scripts that end unlike a fresh sync",
            sum(bool(one.faults) for one in outcomes),
            "scripts",
            "== 0",
        ),
    ]


if __name__ == "__main__":
    from tests.benchmarks.report import table

    table("reorgs", asyncio.run(run(25)))
