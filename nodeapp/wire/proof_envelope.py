"""The proof envelope: what a host stores for one claim, and whose hash goes on chain.

Canonical CBOR (RFC 8949 §4.2.1: shortest forms, sorted keys), so that one envelope has one
hash. `proof_hash` = sha256 of the encoded bytes, the value of `submitProofOfWork`. The host
signs the EIP-712 `envelope_digest` (wire/signed.py) of `signing_digest` with its account key.
It is no evidence that a model ran: see core/ledger_proof.py for what the proofs show.

Version 1 carries proofs. Version 2 says that there is none: it commits to transcript and receipt,
which the renter, and whoever the renter shows its tokens to, can check; nobody else can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

import cbor2
import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.ledger_proof import (
    IDS_PER_CHUNK,
    MAX_CHUNKS,
    LedgerContext,
    context_limbs,
    following,
    link,
    transcript_commitment,
)
from nodeapp.wire.plain_cbor import decode_plain
from nodeapp.wire.proof_profile import Digest, SrsKind
from nodeapp.wire.prover_job import ShownProof

MAX_ENVELOPE_BYTES = 256 << 10
MAX_ENVELOPE_ITEMS = 4096
SIGNATURE_BYTES = 65
SIGNING_DOMAIN = b"fabnode/proof-envelope/1"
RECEIPT_SIGNING_DOMAIN = b"fabnode/proof-envelope/2"

Hash32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
AddressText = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{40}$")]
ModelIdText = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]{64}$")]
CidText = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


NoProofReason = Literal["off", "prover_unavailable"]
"""The host never proves, or its prover did not answer in time."""


class EnvelopeBase(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="v"
):
    """One claim of one session: its place, its transcript, the host's word."""

    chain_id: Number
    marketplace: AddressText
    job_id: Number
    host: AddressText
    model_id: ModelIdText
    model_sha256: Hash32
    """sha256 of the GGUF file as the host states it."""
    interval: Number
    first_token_index: Number
    tokens: Annotated[int, msgspec.Meta(ge=1, le=IDS_PER_CHUNK * MAX_CHUNKS)]
    """The tokens claimed on chain."""
    previous_commitment: Hash32
    """`last_link` of the interval before; zeros for the first interval."""
    previous_proof_hash: Hash32
    """proof_hash of the interval before; zeros for the first."""
    transcript_cid: CidText
    transcript_sha256: Hash32
    """sha256 of the stored blob, which is sealed to the renter."""
    host_signature: Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)] = b""
    """r | s | v, 65 bytes; empty only until it is signed."""


class ProofEnvelope(EnvelopeBase, frozen=True, kw_only=True, tag=1):
    """A proven claim; the chunks' counts add up to `tokens`."""

    profile_id: Digest
    ezkl: Annotated[str, msgspec.Meta(max_length=32)]
    srs_kind: SrsKind
    srs_sha256: Digest
    vk_sha256: Digest
    chunks: Annotated[tuple[ShownProof, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]


class ReceiptEnvelope(EnvelopeBase, frozen=True, kw_only=True, tag=2):
    """A claim without a proof, resting on the renter's receipt alone."""

    no_proof: NoProofReason
    commitment: Hash32
    """core.ledger_proof.transcript_commitment of the claimed ids."""
    receipt_tokens: Number
    """What the renter had signed for; not less than the end of this claim."""
    receipt_sha256: Hash32
    """sha256 of the renter's signature, which lies in the sealed transcript."""


Envelope: TypeAlias = ProofEnvelope | ReceiptEnvelope
_Some = TypeVar("_Some", bound=Envelope)


def signing_digest(envelope: Envelope) -> bytes:
    """The 32 bytes the host signs: sha256(domain | envelope without host_signature)."""
    body = msgspec.to_builtins(envelope, builtin_types=(bytes,))
    del body["host_signature"]
    is_proof = isinstance(envelope, ProofEnvelope)
    domain = SIGNING_DOMAIN if is_proof else RECEIPT_SIGNING_DOMAIN
    return hashlib.sha256(domain + cbor2.dumps(body, canonical=True)).digest()


def with_signature(envelope: _Some, signature: bytes) -> _Some:
    """The signed envelope.

    Raises:
        InvalidRequest: not 65 bytes.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidRequest(f"signature has {len(signature)} bytes, need {SIGNATURE_BYTES}")
    return msgspec.structs.replace(envelope, host_signature=signature)


def encode_envelope(envelope: Envelope) -> bytes:
    """The bytes that are stored and hashed.

    Raises:
        InvalidRequest: not signed yet.
    """
    if len(envelope.host_signature) != SIGNATURE_BYTES:
        raise InvalidRequest("envelope is not signed")
    return cbor2.dumps(msgspec.to_builtins(envelope, builtin_types=(bytes,)), canonical=True)


def decode_envelope(data: bytes) -> Envelope:
    """Read an envelope of either version; only the one canonical form is accepted.

    Raises:
        InvalidRequest: too large, malformed, out of bounds, unsigned or not canonical.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise InvalidRequest(f"envelope has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES}")
    plain = decode_plain(data, "envelope", max_items=MAX_ENVELOPE_ITEMS)
    try:
        envelope: Envelope = msgspec.convert(plain, Envelope, builtin_types=(bytes,), strict=True)
        canonical = encode_envelope(envelope)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidRequest(f"envelope is malformed: {str(error)[:200]}") from error
    if canonical != data:
        raise InvalidRequest("envelope is not in canonical form")
    return envelope


def proof_hash(encoded: bytes) -> bytes:
    """What goes on chain for these bytes."""
    return hashlib.sha256(encoded).digest()


def first_context(envelope: Envelope) -> LedgerContext:
    """Where the envelope's first token stands."""
    return LedgerContext(
        chain_id=envelope.chain_id,
        marketplace=Address(envelope.marketplace),
        job_id=JobId(envelope.job_id),
        host=Address(envelope.host),
        model_id=ModelId(envelope.model_id),
        interval=envelope.interval,
        first_token_index=envelope.first_token_index,
        previous_commitment=envelope.previous_commitment,
    )


def check_ledger(envelope: ProofEnvelope) -> None:
    """The chunks' contexts follow from the envelope and one another, and the counts add up.

    Raises:
        InvalidRequest: with the first thing that is wrong.
    """
    context = first_context(envelope)
    for index, chunk in enumerate(envelope.chunks):
        is_last = index == len(envelope.chunks) - 1
        if not 1 <= chunk.count <= IDS_PER_CHUNK or (chunk.count < IDS_PER_CHUNK and not is_last):
            raise InvalidRequest(f"chunk {index} counts {chunk.count} tokens")
        if chunk.context_limbs != context_limbs(context):
            raise InvalidRequest(f"chunk {index} belongs to another place or session")
        context = following(context, count=chunk.count, commitment=chunk.commitment)
    total = sum(chunk.count for chunk in envelope.chunks)
    if total != envelope.tokens:
        raise InvalidRequest(f"envelope claims {envelope.tokens} tokens, its chunks {total}")


def check_receipt(
    envelope: ReceiptEnvelope, token_ids: Sequence[int], salts: Sequence[bytes]
) -> None:
    """The envelope commits to exactly these ids, and its receipt reaches to their end.

    Whether the receipt is the renter's is the caller's to check.

    Raises:
        InvalidRequest: with the first thing that is wrong.
    """
    if len(token_ids) != envelope.tokens:
        raise InvalidRequest(f"envelope claims {envelope.tokens} tokens, not {len(token_ids)}")
    end = envelope.first_token_index + envelope.tokens
    if envelope.receipt_tokens < end:
        raise InvalidRequest(
            f"envelope claims up to token {end}, its receipt is for {envelope.receipt_tokens}"
        )
    if transcript_commitment(first_context(envelope), token_ids, salts) != envelope.commitment:
        raise InvalidRequest("envelope commits to other tokens")


def last_link(envelope: Envelope) -> bytes:
    """`previous_commitment` of the interval after this one."""
    if isinstance(envelope, ReceiptEnvelope):
        return link(envelope.commitment)
    context = first_context(envelope)
    for chunk in envelope.chunks:
        context = following(context, count=chunk.count, commitment=chunk.commitment)
    return context.previous_commitment
