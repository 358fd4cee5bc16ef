"""The proof envelope: what a host stores for one claim, and whose hash goes on chain.

Canonical CBOR (RFC 8949 §4.2.1: shortest forms, sorted keys), so that one envelope has one
hash. `proof_hash` = sha256 of the encoded bytes, the value of `submitProofOfWork`. The host
signs the EIP-712 `envelope_digest` (wire/signed.py) of `signing_digest` with its account key.
It is no evidence that a model ran: see core/ledger_proof.py for what the proofs show.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

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
)
from nodeapp.wire.plain_cbor import decode_plain
from nodeapp.wire.proof_profile import Digest, SrsKind
from nodeapp.wire.prover_job import ShownProof

MAX_ENVELOPE_BYTES = 256 << 10
MAX_ENVELOPE_ITEMS = 4096
SIGNATURE_BYTES = 65
SIGNING_DOMAIN = b"fabnode/proof-envelope/1"

Hash32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
AddressText = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{40}$")]
ModelIdText = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]{64}$")]
CidText = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class ProofEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One claim of one session, with everything needed to check it."""

    profile_id: Digest
    ezkl: Annotated[str, msgspec.Meta(max_length=32)]
    srs_kind: SrsKind
    srs_sha256: Digest
    vk_sha256: Digest
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
    """Sum of the chunks' counts, and the tokens claimed on chain."""
    previous_commitment: Hash32
    """ledger link to the last chunk of the interval before; zeros for the first interval."""
    previous_proof_hash: Hash32
    """proof_hash of the interval before; zeros for the first."""
    chunks: Annotated[tuple[ShownProof, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]
    transcript_cid: CidText
    transcript_sha256: Hash32
    """sha256 of the stored blob, which is sealed to the renter."""
    host_signature: Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)] = b""
    """r | s | v, 65 bytes; empty only until it is signed."""
    v: Literal[1] = 1


def signing_digest(envelope: ProofEnvelope) -> bytes:
    """The 32 bytes the host signs: sha256(domain | envelope without host_signature)."""
    body = msgspec.to_builtins(envelope, builtin_types=(bytes,))
    del body["host_signature"]
    return hashlib.sha256(SIGNING_DOMAIN + cbor2.dumps(body, canonical=True)).digest()


def with_signature(envelope: ProofEnvelope, signature: bytes) -> ProofEnvelope:
    """The signed envelope.

    Raises:
        InvalidRequest: not 65 bytes.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidRequest(f"signature has {len(signature)} bytes, need {SIGNATURE_BYTES}")
    return msgspec.structs.replace(envelope, host_signature=signature)


def encode_envelope(envelope: ProofEnvelope) -> bytes:
    """The bytes that are stored and hashed.

    Raises:
        InvalidRequest: not signed yet.
    """
    if len(envelope.host_signature) != SIGNATURE_BYTES:
        raise InvalidRequest("envelope is not signed")
    return cbor2.dumps(msgspec.to_builtins(envelope, builtin_types=(bytes,)), canonical=True)


def decode_envelope(data: bytes) -> ProofEnvelope:
    """Read an envelope; only the one canonical form is accepted.

    Raises:
        InvalidRequest: too large, malformed, out of bounds, unsigned or not canonical.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise InvalidRequest(f"envelope has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES}")
    plain = decode_plain(data, "envelope", max_items=MAX_ENVELOPE_ITEMS)
    try:
        envelope = msgspec.convert(plain, ProofEnvelope, builtin_types=(bytes,), strict=True)
        canonical = encode_envelope(envelope)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidRequest(f"envelope is malformed: {str(error)[:200]}") from error
    if canonical != data:
        raise InvalidRequest("envelope is not in canonical form")
    return envelope


def proof_hash(encoded: bytes) -> bytes:
    """What goes on chain for these bytes."""
    return hashlib.sha256(encoded).digest()


def first_context(envelope: ProofEnvelope) -> LedgerContext:
    """The context of the envelope's first chunk."""
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


def last_link(envelope: ProofEnvelope) -> bytes:
    """`previous_commitment` of the interval after this one."""
    context = first_context(envelope)
    for chunk in envelope.chunks:
        context = following(context, count=chunk.count, commitment=chunk.commitment)
    return context.previous_commitment
