"""Turn a prepared claim into a sealed one: prove, encrypt the transcript, store, sign.

Every input is fixed by the prepared claim, and `prover` answers a repeated question with its
first proofs; a crash anywhere in here is repeated without another claim coming out.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from nodeapp.core.errors import Corrupt
from nodeapp.core.ids import Address
from nodeapp.core.session import Claim, ClaimSealed, Session
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.contracts import Contracts
from nodeapp.rpc.prover import ProverClient
from nodeapp.rpc.storage import StorageClient
from nodeapp.security.sealed import seal
from nodeapp.wire.ipc_prover import ProveReply, ProveRequest
from nodeapp.wire.proof_envelope import (
    ProofEnvelope,
    check_ledger,
    encode_envelope,
    last_link,
    proof_hash,
    signing_digest,
    with_signature,
)
from nodeapp.wire.signed import domain_separator, envelope_digest
from nodeapp.wire.transcript import SealedPrompt, Transcript, encode_transcript

PROVE_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Sealer:
    """What sealing needs."""

    prover: ProverClient
    storage: StorageClient
    wallet: Wallet
    contracts: Contracts

    async def seal(self, session: Session, claim: Claim) -> ClaimSealed:
        """Prove and store one claim.

        Raises:
            Unavailable: prover or storage is down; call again.
            Corrupt: the proofs do not say what was asked.
        """
        terms = session.terms
        ids = session.ids(claim.first_token, claim.tokens)
        reply = await self.prover.prove(
            ProveRequest(
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
            ),
            deadline_seconds=PROVE_SECONDS,
        )
        blob = await asyncio.to_thread(
            seal, encode_transcript(_transcript(session, claim, ids)), session.renter_key
        )
        transcript_cid = await self.storage.store(blob)
        model = await self.contracts.model(terms.model_id)
        stored = _Stored(model.sha256, transcript_cid, hashlib.sha256(blob).digest())
        envelope = self._sign(_envelope(session, claim, reply, stored))
        encoded = encode_envelope(envelope)
        proof_cid = await self.storage.store(encoded)
        return ClaimSealed(
            job_id=terms.job_id,
            interval=claim.interval,
            proof_hash=proof_hash(encoded),
            proof_cid=proof_cid,
            transcript_cid=transcript_cid,
            last_commitment=last_link(envelope),
            proofs=len(reply.proofs),
            proof_bytes=sum(len(chunk.shown.proof) for chunk in reply.proofs),
            prove_cpu_seconds=sum(chunk.spent.cpu_seconds for chunk in reply.proofs),
        )

    def _sign(self, envelope: ProofEnvelope) -> ProofEnvelope:
        separator = domain_separator(envelope.chain_id, Address(envelope.marketplace))
        digest = envelope_digest(separator, signing_digest(envelope))
        return with_signature(envelope, self.wallet.sign_digest(digest))


@dataclass(frozen=True, slots=True)
class _Stored:
    """Facts of the envelope that do not come from session or prover."""

    model_sha256: bytes
    transcript_cid: str
    transcript_sha256: bytes


def _envelope(session: Session, claim: Claim, reply: ProveReply, stored: _Stored) -> ProofEnvelope:
    terms = session.terms
    profile = reply.profile
    envelope = ProofEnvelope(
        profile_id=profile.profile_id,
        ezkl=profile.ezkl,
        srs_kind=profile.srs_kind,
        srs_sha256=profile.srs_sha256,
        vk_sha256=profile.vk_sha256,
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
        chunks=tuple(chunk.shown for chunk in reply.proofs),
        transcript_cid=stored.transcript_cid,
        transcript_sha256=stored.transcript_sha256,
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
