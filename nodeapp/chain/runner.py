"""Carry out what next_step() says each session owes the chain; one step per session at a time.

A failed step is tried again with backoff for as long as the state still asks for it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from nodeapp.chain.ledger import Ledger
from nodeapp.chain.queue import TransactionQueue
from nodeapp.chain.sealing import Sealer
from nodeapp.core.claims import claimable_from
from nodeapp.core.errors import Corrupt, NodeError, Rejected, Unavailable
from nodeapp.core.ids import JobId
from nodeapp.core.ledger_proof import IDS_PER_CHUNK, SALT_BYTES
from nodeapp.core.session import Claim, ClaimPrepared, Session
from nodeapp.core.steps import (
    CompleteSession,
    PrepareClaim,
    SealClaim,
    Step,
    SubmitClaim,
    TriggerTimeout,
    WaitUntil,
    WithdrawEarnings,
    next_step,
    overdue_at,
)
from nodeapp.core.units import BlockTime, Tokens
from nodeapp.evm.calls import Calls
from nodeapp.evm.refusals import InsufficientFunds
from nodeapp.service.logs import get_logger

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """Policy of the host."""

    claim_interval_tokens: int
    dispute_window_seconds: int


@dataclass(slots=True)
class _Job:
    """One session's step under way or done."""

    done: Step | None = None
    task: asyncio.Task[None] | None = None
    failures: int = 0
    rewinds: int = 0
    """ledger.rewinds when `done` was done."""


@dataclass(slots=True)
class Runner:
    """Owns the step tasks; `consider` is called on every change and every block."""

    ledger: Ledger
    queue: TransactionQueue
    sealer: Sealer
    calls: Calls
    settings: RunnerSettings
    _jobs: dict[JobId, _Job] = field(default_factory=dict)
    _now: BlockTime = field(default=BlockTime(0))
    _rewinds: int = 0

    def consider(self, now: BlockTime, tasks: asyncio.TaskGroup) -> None:
        """Start on every session that owes something and is not under way.

        With a new block and after a reorg all are looked at, otherwise those that changed.
        """
        unsettled = self.ledger.unsettled
        is_new = (now, self.ledger.rewinds) != (self._now, self._rewinds)
        self._rewinds = self.ledger.rewinds
        chosen = (
            list(unsettled) if is_new else [one for one in self.ledger.touched if one in unsettled]
        )
        self._now = now
        self.ledger.touched.clear()
        if is_new:
            self._jobs = {one: job for one, job in self._jobs.items() if one in unsettled}
        for job_id in chosen:
            job = self._jobs.setdefault(job_id, _Job())
            is_running = job.task is not None and not job.task.done()
            if not is_running and self._due(job, job_id) is not None:
                job.task = tasks.create_task(self._run(job, job_id), name=f"session {job_id}")

    def _due(self, job: _Job, job_id: JobId) -> Step | None:
        session = self.ledger.sessions.get(job_id)
        if session is None:
            return None  # archived meanwhile
        if job.rewinds != self.ledger.rewinds:
            job.rewinds, job.done = self.ledger.rewinds, None
        step = next_step(
            session,
            self._now,
            interval_tokens=self.settings.claim_interval_tokens,
            dispute_window_seconds=self.settings.dispute_window_seconds,
        )
        if isinstance(step, WaitUntil | WithdrawEarnings) or step == job.done:
            return None  # the withdrawer sees to all sessions' earnings together
        return step

    async def _run(self, job: _Job, job_id: JobId) -> None:
        """Step after step until nothing is due; changes that come meanwhile are seen here."""
        while (step := self._due(job, job_id)) is not None:
            try:
                await self._carry_out(self.ledger.session(job_id), step)
            except Corrupt:
                raise
            except NodeError as error:
                pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**job.failures)
                if isinstance(error, InsufficientFunds):
                    pause = LONGEST_RETRY_SECONDS  # somebody must send gas first
                job.failures += 1
                _log.warning(
                    "step failed",
                    job_id=job_id,
                    step=type(step).__name__,
                    code=error.code,
                    error=error.message,
                    retry_seconds=pause,
                )
                await asyncio.sleep(pause)
            else:
                job.failures = 0
                job.done = step

    async def _carry_out(self, session: Session, step: Step) -> None:
        job_id = session.terms.job_id
        match step:
            case PrepareClaim(tokens=tokens):
                await self.ledger.record(ClaimPrepared(job_id, self._claim(session, tokens)))
            case SealClaim(claim=claim):
                await self.ledger.record(await self.sealer.seal(session, claim))
                _log.info("claim sealed", job_id=job_id, tokens=claim.tokens)
            case SubmitClaim(claim=claim):
                await self._keep_rate(session, claim)
                await self.queue.execute(
                    f"claim/{job_id}/{claim.interval}",
                    self.calls.submit_proof(
                        job_id,
                        claim.tokens,
                        claim.proof_hash,
                        proof_cid=claim.proof_cid,
                        delta_cid=claim.transcript_cid,
                    ),
                )
            case CompleteSession():
                await self._complete(session)
            case TriggerTimeout():
                await self._time_out(session)
            case WithdrawEarnings() | WaitUntil():
                return

    async def _complete(self, session: Session) -> None:
        job_id = session.terms.job_id
        try:
            await self.queue.execute(_key("complete", session), self.calls.complete_session(job_id))
        except Rejected as error:
            if self._now < overdue_at(session):
                raise
            # A timeout settles alike, and whoever triggers it needs no right to.
            _log.warning("session timed out instead", job_id=job_id, error=error.message)
            await self._time_out(session)

    async def _time_out(self, session: Session) -> None:
        call = self.calls.trigger_timeout(session.terms.job_id)
        await self.queue.execute(_key("timeout", session), call)

    async def _keep_rate(self, session: Session, claim: Claim) -> None:
        """Send nothing that the model's rate limit would revert.

        Raises:
            Unavailable: too early; the step is tried again.
        """
        limit = await self.sealer.contracts.model_rate_limit(session.terms.model_id)
        if limit <= 0:
            raise Unavailable(
                f"model {session.terms.model_id} has a rate limit of {limit} tokens/s"
            )
        earliest = claimable_from(
            last_proof_at=session.last_proof_at, tokens=claim.tokens, tokens_per_second=limit
        )
        if self._now < earliest:
            raise Unavailable(
                f"{claim.tokens} tokens are within the model's limit of {limit} tokens/s"
                f" from block time {earliest}, {earliest - self._now} s from now"
            )

    def _claim(self, session: Session, tokens: Tokens) -> Claim:
        chunks = -(-tokens // IDS_PER_CHUNK)
        return Claim(
            interval=session.intervals,
            first_token=session.covered,
            tokens=tokens,
            salts=tuple(secrets.token_bytes(SALT_BYTES) for _ in range(chunks)),
            previous_commitment=session.previous_commitment,
        )


def _key(verb: str, session: Session) -> str:
    """A session that a reorganisation put under a known job id must not find its work done."""
    first = f"/{session.first_interval}" if session.first_interval else ""
    return f"{verb}/{session.terms.job_id}{first}"
