"""Prove one interval: chunk by chunk, each found in the store or made by a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import stamina

from nodeapp.core.errors import InvalidRequest, Rejected, Unavailable
from nodeapp.core.ledger_proof import (
    LedgerContext,
    chunk_ids,
    context_limbs,
    following,
    ledger_vector,
)
from nodeapp.prover.proof_store import ProofStore, proof_key
from nodeapp.wire import prover_job
from nodeapp.wire.ipc_prover import ProfileReply, ProvedChunk, ProveReply, ProveRequest

ATTEMPTS = 3

RunWorker = Callable[[prover_job.Job], Awaitable[prover_job.Result]]
Note = Callable[[str, prover_job.Spent | None], None]


@dataclass(frozen=True, slots=True)
class IntervalProver:
    """Turns a request into proofs; stateless but for the store."""

    profile: ProfileReply
    directory: str
    store: ProofStore
    worker: RunWorker
    note: Note
    """Told (outcome, cost) of each chunk: "made", "found", "refused", "failed"."""

    async def prove(self, request: ProveRequest) -> ProveReply:
        """Prove all chunks in order; each names the one before.

        Raises:
            InvalidRequest: salts and chunks differ in number, an id is malformed.
            Unavailable: the worker failed on this machine, three times over.
            Rejected: a proof we made does not verify; trying again will not help.
        """
        chunks = chunk_ids(request.token_ids)
        if len(request.salts) != len(chunks):
            raise InvalidRequest(f"{len(request.salts)} salts for {len(chunks)} chunks")
        context = _first_context(request)
        proofs: list[ProvedChunk] = []
        for ids, salt in zip(chunks, request.salts, strict=True):
            proved = await self._chunk(ledger_vector(ids, context_limbs(context), salt))
            proofs.append(ProvedChunk(proved.shown, proved.spent))
            context = following(context, count=len(ids), commitment=proved.shown.commitment)
        return ProveReply(self.profile, tuple(proofs))

    async def _chunk(self, vector: tuple[int, ...]) -> prover_job.Proved:
        key = proof_key(self.profile.profile_id, vector)
        kept = await asyncio.to_thread(self.store.get, key)
        if kept is not None:
            self.note("found", None)
            return kept
        proved = await self._make(vector)
        await asyncio.to_thread(self.store.put, key, proved)
        self.note("made", proved.spent)
        return proved

    async def _make(self, vector: tuple[int, ...]) -> prover_job.Proved:
        job = prover_job.ProveJob(self.directory, vector)
        async for attempt in stamina.retry_context(
            on=Unavailable, attempts=ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=10.0
        ):
            with attempt:
                match await self.worker(job):
                    case prover_job.Proved() as proved:
                        return proved
                    case prover_job.Refused(reason):
                        self.note("refused", None)
                        raise Rejected(f"own proof was refused: {reason}")
                    case other:
                        self.note("failed", None)
                        raise Unavailable(f"proof worker: {other}")
        raise Unavailable(f"no proof after {ATTEMPTS} attempts")


def _first_context(request: ProveRequest) -> LedgerContext:
    return LedgerContext(
        chain_id=request.chain_id,
        marketplace=request.marketplace,
        job_id=request.job_id,
        host=request.host,
        model_id=request.model_id,
        interval=request.interval,
        first_token_index=request.first_token_index,
        previous_commitment=request.previous_commitment,
    )
