"""Check every claim of a session with the renter's own record and key, chain and blobs.

What passes means: the tokens claimed on chain are exactly the tokens this renter received, in
one committed transcript of this session, proven once. It does not mean that a model ran.
A claim may come without a proof; then host and renter agree on the tokens, and that is all.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.core.ids import Address, JobId
from nodeapp.core.ledger_proof import NO_COMMITMENT
from nodeapp.core.pricing import settle
from nodeapp.core.units import BlockNumber
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.contracts import Contracts, SessionJob, SessionStatus
from nodeapp.evm.events import ProofSubmitted
from nodeapp.evm.marketplace_events import MarketplaceEvents
from nodeapp.renter.record import SessionRecord
from nodeapp.renter.results import Fetch
from nodeapp.renter.settings import RenterSettings
from nodeapp.rpc.proof_worker import verify_ledger
from nodeapp.s5.cid import blob_id_of, cid_of
from nodeapp.security.sealed import open_sealed
from nodeapp.security.wallet import verify_digest
from nodeapp.wire.proof_envelope import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    ProofEnvelope,
    ReceiptEnvelope,
    check_receipt,
    decode_envelope,
    last_link,
    proof_hash,
    signing_digest,
)
from nodeapp.wire.signed import domain_separator, envelope_digest, receipt_digest
from nodeapp.wire.transcript import MAX_TRANSCRIPT_BYTES, Transcript, decode_transcript


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


class VerifyReport(msgspec.Struct, frozen=True):
    """The verdict; `reason` is the first thing that is wrong."""

    ok: bool
    reason: str
    job_id: JobId
    claims: int
    tokens_claimed: int
    tokens_received: int
    unproven: int
    """Claims that rest on the renter's own receipt alone."""
    checks: tuple[Check, ...]


@dataclass(slots=True)
class _Chain:
    """Where the next envelope must go on."""

    next_token: int = 0
    previous_proof_hash: bytes = bytes(32)
    previous_commitment: bytes = NO_COMMITMENT
    unproven: int = 0
    checks: list[Check] = field(default_factory=list)

    def passed(self, name: str, detail: str) -> None:
        self.checks.append(Check(name, ok=True, detail=detail))


@dataclass(frozen=True, slots=True)
class Verifier:
    """One session's verification."""

    settings: RenterSettings
    wallet: Wallet
    contracts: Contracts
    record: SessionRecord
    fetch: Fetch
    local_envelope: Path | None = None
    """Check this copy of the newest envelope instead of the published one."""

    async def verify(self) -> VerifyReport:
        """Look at every claim of the session.

        Raises:
            Unavailable: chain or results cannot be reached, or this machine cannot check proofs.
        """
        head = self.record.head
        job = await self.contracts.session(head.job_id)
        claims = await self._claims(head.job_id)
        state, reason = _Chain(), ""
        try:
            for index, claim in enumerate(claims):
                await self._check_claim(claim, state, is_last=index == len(claims) - 1)
            await self._check_totals(job, claims, state)
        except Rejected as error:
            reason = error.message
            state.checks.append(Check("verdict", ok=False, detail=reason))
        return VerifyReport(
            ok=not reason,
            reason=reason,
            job_id=head.job_id,
            claims=len(claims),
            tokens_claimed=job.tokens_used,
            tokens_received=len(self.record.token_ids),
            unproven=state.unproven,
            checks=tuple(state.checks),
        )

    async def _claims(self, job_id: JobId) -> list[ProofSubmitted]:
        newest = await self.contracts.provider.block_number()
        events = MarketplaceEvents(self.contracts.provider, self.contracts.deployment)
        found = await events.get_events(BlockNumber(0), newest, self.record.head.host)
        return [
            event for event in found if isinstance(event, ProofSubmitted) and event.job_id == job_id
        ]

    async def _check_claim(self, claim: ProofSubmitted, state: _Chain, *, is_last: bool) -> None:
        data = await self._envelope_bytes(claim, is_last=is_last)
        found = cid_of(blob_id_of(data))
        if found != claim.proof_cid:
            raise InvalidRequest(f"envelope is blob {found}, the chain names {claim.proof_cid}")
        state.passed("cid", f"{found} ({len(data)} bytes)")
        if proof_hash(data) != claim.proof_hash:
            raise InvalidRequest(
                f"envelope hashes to {proof_hash(data).hex()}, on chain is {claim.proof_hash.hex()}"
            )
        state.passed("proof hash", claim.proof_hash.hex())
        envelope = decode_envelope(data)
        self._check_place(envelope, claim, state)
        self._check_signature(envelope)
        state.passed("signature", f"host {self.record.head.host}")
        transcript = await self._transcript(envelope, claim)
        ids = self._own_ids(envelope, transcript)
        state.passed("transcript", f"{len(ids)} tokens are those received")
        if isinstance(envelope, ReceiptEnvelope):
            self._check_receipt(envelope, ids, transcript, state)
        else:
            await self._check_proofs(envelope, ids, transcript, state)
        state.next_token += envelope.tokens
        state.previous_proof_hash = claim.proof_hash
        state.previous_commitment = last_link(envelope)

    async def _envelope_bytes(self, claim: ProofSubmitted, *, is_last: bool) -> bytes:
        if self.local_envelope is not None and is_last:
            return await asyncio.to_thread(self.local_envelope.read_bytes)
        return await self.fetch(claim.proof_cid, MAX_ENVELOPE_BYTES)

    def _check_place(self, envelope: Envelope, claim: ProofSubmitted, state: _Chain) -> None:
        head = self.record.head
        expected = {
            "chain": (envelope.chain_id, head.chain_id),
            "marketplace": (envelope.marketplace, head.marketplace),
            "session": (envelope.job_id, head.job_id),
            "host": (envelope.host, head.host),
            "model": (envelope.model_id, head.model_id),
            "tokens": (envelope.tokens, claim.tokens),
            "first token": (envelope.first_token_index, state.next_token),
            "previous proof": (envelope.previous_proof_hash, state.previous_proof_hash),
            "previous commitment": (envelope.previous_commitment, state.previous_commitment),
        }
        for name, (said, known) in expected.items():
            if said != known:
                raise InvalidRequest(f"envelope says {name} {said!r}, expected {known!r}")
        state.passed("place", f"session {head.job_id}, tokens from {state.next_token}")

    def _check_signature(self, envelope: Envelope) -> None:
        separator = domain_separator(envelope.chain_id, Address(envelope.marketplace))
        digest = envelope_digest(separator, signing_digest(envelope))
        verify_digest(digest, envelope.host_signature, self.record.head.host)

    async def _transcript(self, envelope: Envelope, claim: ProofSubmitted) -> Transcript:
        if envelope.transcript_cid != claim.delta_cid:
            raise InvalidRequest("envelope and chain name different transcripts")
        blob = await self.fetch(claim.delta_cid, MAX_TRANSCRIPT_BYTES)
        if hashlib.sha256(blob).digest() != envelope.transcript_sha256:
            raise InvalidRequest("transcript does not have the hash the envelope states")
        opened = await asyncio.to_thread(open_sealed, blob, self.wallet.private_key)
        return decode_transcript(opened)

    def _own_ids(self, envelope: Envelope, transcript: Transcript) -> tuple[int, ...]:
        first = envelope.first_token_index
        own = tuple(self.record.token_ids[first : first + envelope.tokens])
        if len(own) != envelope.tokens:
            raise InvalidRequest(
                f"host claims tokens {first} to {first + envelope.tokens},"
                f" only {len(self.record.token_ids)} were received"
            )
        if transcript.token_ids != own or transcript.first_token != first:
            raise InvalidRequest("transcript holds other tokens than were received")
        return own

    async def _check_proofs(
        self, envelope: ProofEnvelope, ids: tuple[int, ...], transcript: Transcript, state: _Chain
    ) -> None:
        if not self.settings.profile_dir:
            raise Rejected("renter settings name no profile_dir, so proofs cannot be checked")
        outcome = await verify_ledger(
            Path(self.settings.profile_dir),
            envelope,
            token_ids=ids,
            salts=transcript.salts,
            allow_test_srs=self.settings.allow_test_srs,
        )
        if not outcome.ok:
            raise InvalidRequest(outcome.reason)
        count = len(envelope.chunks)
        state.passed("commitment", f"{count} recomputed from the received tokens")
        state.passed("ezkl proof", f"{count} verified, {envelope.srs_kind} reference string")

    def _check_receipt(
        self,
        envelope: ReceiptEnvelope,
        ids: tuple[int, ...],
        transcript: Transcript,
        state: _Chain,
    ) -> None:
        """Without a proof: the commitment is to our tokens, and we did sign for them."""
        check_receipt(envelope, ids, transcript.salts)
        state.passed("commitment", "recomputed from the received tokens")
        signature, signed = transcript.receipt_signature, envelope.receipt_tokens
        if hashlib.sha256(signature).digest() != envelope.receipt_sha256:
            raise InvalidRequest("envelope names another receipt than the transcript holds")
        if signed != transcript.receipt_tokens or signed > len(self.record.token_ids):
            raise InvalidRequest(f"receipt for {signed} tokens was never given")
        separator = domain_separator(envelope.chain_id, Address(envelope.marketplace))
        start = initial_hash(
            envelope.chain_id, Address(envelope.marketplace), JobId(envelope.job_id)
        )
        running = extend_hash(start, self.record.token_ids[:signed])
        digest = receipt_digest(separator, JobId(envelope.job_id), signed, running)
        verify_digest(digest, signature, self.wallet.address)
        state.passed("receipt", f"own signature for {signed} tokens")
        state.unproven += 1
        if self.settings.require_proofs:
            raise InvalidRequest(
                f"the claim of {envelope.tokens} tokens has no proof ({envelope.no_proof}),"
                " and require_proofs is set"
            )
        state.passed("NO PROOF", f"receipt only, the host says: {envelope.no_proof}")

    async def _check_totals(
        self, job: SessionJob, claims: list[ProofSubmitted], state: _Chain
    ) -> None:
        total = sum(claim.tokens for claim in claims)
        if total != job.tokens_used:
            raise InvalidRequest(f"chain counts {job.tokens_used} tokens, its proofs {total}")
        state.passed("token count", f"{total} on chain, {len(self.record.token_ids)} received")
        if job.status is SessionStatus.ACTIVE or not claims:
            return
        fee = await self.contracts.fee_basis_points()
        due = settle(job.deposit, job.tokens_used, job.price_per_token, fee_basis_points=fee)
        if (due.host, due.treasury, due.refund) != (
            job.host_share,
            job.treasury_share,
            job.refund,
        ):
            raise InvalidRequest(
                f"settled host {job.host_share}, refund {job.refund}; due {due.host}, {due.refund}"
            )
        state.passed("settlement", f"{due.host} host + {due.treasury} treasury + {due.refund} back")
