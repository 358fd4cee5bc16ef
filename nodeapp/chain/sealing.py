"""Turn a prepared claim into a sealed one: prove, encrypt the transcript, store, sign.

Every input is fixed by the prepared claim, and `prover` answers a repeated question with its
first proofs; a crash anywhere in here is repeated without another claim coming out.

`chain.proof` says what happens without a proof: `required` waits for it, `best_effort` waits for
a while, `off` never asks. A claim without one goes out with an envelope that says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from nodeapp.core.errors import Corrupt, Rejected, Unavailable
from nodeapp.core.ids import Address, JobId
from nodeapp.core.ledger_proof import LedgerContext, transcript_commitment
from nodeapp.core.session import Claim, ClaimSealed, Session
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.signers import Signer
from nodeapp.rpc.prover import ProverClient
from nodeapp.rpc.storage import StorageClient
from nodeapp.security.sealed import seal
from nodeapp.service.clock import Clock, SystemClock
from nodeapp.service.logs import get_logger
from nodeapp.wire.ipc_prover import ProveReply, ProveRequest
from nodeapp.wire.proof_envelope import (
    Envelope,
    EnvelopeBase,
    NoProofReason,
    ProofEnvelope,
    ReceiptEnvelope,
    check_ledger,
    encode_envelope,
    last_link,
    proof_hash,
    signing_digest,
    with_signature,
)
from nodeapp.wire.signed import domain_separator, envelope_message
from nodeapp.wire.transcript import SealedPrompt, Transcript, encode_transcript

PROVE_SECONDS = 900.0
PATIENCE_PART = 4
"""A claim may wait for its proof for this part of the session's proof window; it is prepared at
half of the window at the latest, and after it anybody may end the session without the claim."""
ProofPolicy = Literal["required", "best_effort", "off"]
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sealer:
    """What sealing needs."""

    prover: ProverClient
    storage: StorageClient
    signer: Signer
    contracts: Contracts
    policy: ProofPolicy = "required"
    patience_seconds: float = 120.0
    """best_effort: how long one claim waits for its proof; see PATIENCE_PART."""
    clock: Clock = field(default_factory=SystemClock)
    _asked_at: dict[tuple[JobId, int], float] = field(default_factory=dict)

    async def seal(self, session: Session, claim: Claim) -> ClaimSealed:
        """Prove and store one claim.

        Raises:
            Unavailable: prover or storage is down; call again.
            Corrupt: the proofs do not say what was asked.
        """
        terms = session.terms
        ids = session.ids(claim.first_token, claim.tokens)
        evidence = await self._evidence(session, claim, ids)
        blob = await asyncio.to_thread(
            seal, encode_transcript(_transcript(session, claim, ids)), session.renter_key
        )
        transcript_cid = await self.storage.store(blob)
        model = await self.contracts.model(terms.model_id)
        stored = _Stored(model.sha256, transcript_cid, hashlib.sha256(blob).digest())
        envelope = _envelope(session, claim, evidence, stored)
        envelope = with_signature(envelope, await self._signature(envelope))
        encoded = encode_envelope(envelope)
        proof_cid = await self.storage.store(encoded)
        chunks = evidence.proofs if isinstance(evidence, ProveReply) else ()
        return ClaimSealed(
            job_id=terms.job_id,
            interval=claim.interval,
            proof_hash=proof_hash(encoded),
            proof_cid=proof_cid,
            transcript_cid=transcript_cid,
            last_commitment=last_link(envelope),
            proofs=len(chunks),
            proof_bytes=sum(len(chunk.shown.proof) for chunk in chunks),
            prove_cpu_seconds=sum(chunk.spent.cpu_seconds for chunk in chunks),
        )

    async def _evidence(self, session: Session, claim: Claim, ids: tuple[int, ...]) -> _Evidence:
        """Proofs, or what stands in their place under the host's policy."""
        if self.policy == "off":
            return _without_proof(session, claim, ids, "off")
        if self.policy == "required":
            return await self._prove(session, claim, ids, PROVE_SECONDS)
        key = (session.terms.job_id, claim.interval)
        patience = min(self.patience_seconds, session.terms.proof_timeout_seconds / PATIENCE_PART)
        give_up_at = self._asked_at.setdefault(key, self.clock.monotonic_seconds()) + patience
        try:
            left = max(1.0, give_up_at - self.clock.monotonic_seconds())
            evidence: _Evidence = await self._prove(session, claim, ids, min(PROVE_SECONDS, left))
        except (Rejected, Unavailable) as error:
            if self.clock.monotonic_seconds() < give_up_at:
                raise
            _log.warning(
                "claim goes out without a proof",
                job_id=session.terms.job_id,
                interval=claim.interval,
                waited_seconds=patience,
                error=error.message,
            )
            evidence = _without_proof(session, claim, ids, "prover_unavailable")
        del self._asked_at[key]
        return evidence

    async def _prove(
        self, session: Session, claim: Claim, ids: tuple[int, ...], deadline_seconds: float
    ) -> ProveReply:
        terms = session.terms
        request = ProveRequest(
            chain_id=terms.chain_id,
            marketplace=terms.marketplace,
            job_id=terms.job_id,
            host=terms.host,
            model_id=terms.model_id,
            interval=claim.interval,
            first_token_index=claim.first_token,
            previous_commitment=claim.previous_commitment,
            token_ids=ids,
            salts=claim.salts,
        )
        return await self.prover.prove(request, deadline_seconds=deadline_seconds)

    async def _signature(self, envelope: Envelope) -> bytes:
        separator = domain_separator(envelope.chain_id, Address(envelope.marketplace))
        return await self.signer.sign_hashed(envelope_message(separator, signing_digest(envelope)))


@dataclass(frozen=True, slots=True)
class _NoProof:
    """What a claim without a proof is committed by."""

    reason: NoProofReason
    commitment: bytes


_Evidence = ProveReply | _NoProof


def _without_proof(
    session: Session, claim: Claim, ids: tuple[int, ...], reason: NoProofReason
) -> _NoProof:
    terms = session.terms
    context = LedgerContext(
        chain_id=terms.chain_id,
        marketplace=terms.marketplace,
        job_id=terms.job_id,
        host=terms.host,
        model_id=terms.model_id,
        interval=claim.interval,
        first_token_index=claim.first_token,
        previous_commitment=claim.previous_commitment,
    )
    return _NoProof(reason, transcript_commitment(context, ids, claim.salts))


@dataclass(frozen=True, slots=True)
class _Stored:
    """Facts of the envelope that do not come from session or prover."""

    model_sha256: bytes
    transcript_cid: str
    transcript_sha256: bytes


def _envelope(session: Session, claim: Claim, evidence: _Evidence, stored: _Stored) -> Envelope:
    terms = session.terms
    base = EnvelopeBase(
        chain_id=terms.chain_id,
        marketplace=terms.marketplace,
        job_id=terms.job_id,
        host=terms.host,
        model_id=terms.model_id,
        model_sha256=stored.model_sha256,
        interval=claim.interval,
        first_token_index=claim.first_token,
        tokens=claim.tokens,
        previous_commitment=claim.previous_commitment,
        previous_proof_hash=session.previous_proof_hash,
        transcript_cid=stored.transcript_cid,
        transcript_sha256=stored.transcript_sha256,
    )
    if isinstance(evidence, _NoProof):
        return ReceiptEnvelope(
            **msgspec.structs.asdict(base),
            no_proof=evidence.reason,
            commitment=evidence.commitment,
            receipt_tokens=session.acknowledged,
            receipt_sha256=hashlib.sha256(session.receipt_signature).digest(),
        )
    profile = evidence.profile
    envelope = ProofEnvelope(
        **msgspec.structs.asdict(base),
        profile_id=profile.profile_id,
        ezkl=profile.ezkl,
        srs_kind=profile.srs_kind,
        srs_sha256=profile.srs_sha256,
        vk_sha256=profile.vk_sha256,
        chunks=tuple(chunk.shown for chunk in evidence.proofs),
    )
    check_ledger(envelope)
    if envelope.tokens != claim.tokens:
        raise Corrupt(f"prover counted {envelope.tokens} tokens, {claim.tokens} claimed")
    return envelope


def _transcript(session: Session, claim: Claim, ids: tuple[int, ...]) -> Transcript:
    end = claim.first_token + claim.tokens
    return Transcript(
        job_id=session.terms.job_id,
        interval=claim.interval,
        first_token=claim.first_token,
        token_ids=ids,
        salts=claim.salts,
        prompts=tuple(
            SealedPrompt(prompt.request_id, prompt.first_token, prompt.sealed)
            for prompt in session.prompts
            if prompt.first_token < end
        ),
        receipt_tokens=session.acknowledged,
        receipt_signature=session.receipt_signature,
    )
