"""What `prover` may be asked: ledger proofs of one interval."""

from __future__ import annotations

from typing import Annotated

import msgspec

from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.ledger_proof import IDS_PER_CHUNK, MAX_CHUNKS, MAX_TOKEN_ID, SALT_BYTES
from nodeapp.wire.ipc import Message
from nodeapp.wire.proof_profile import Digest, ProfileName, SrsKind
from nodeapp.wire.prover_job import ShownProof, Spent

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
TokenIds = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)], ...],
    msgspec.Meta(min_length=1, max_length=IDS_PER_CHUNK * MAX_CHUNKS),
]
Salt = Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]


class ProveRequest(Message, frozen=True):
    """Prove that `token_ids` are the tokens of this place in this session.

    The answer depends on nothing else: the same request, also after a crash of either side,
    is answered with the first proofs made for it.
    """

    chain_id: Number
    marketplace: Address
    job_id: JobId
    host: Address
    model_id: ModelId
    interval: Number
    """Number of the claim within the session, from 0."""
    first_token_index: Number
    previous_commitment: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """`last_link` of the envelope before; 32 zero bytes for interval 0."""
    token_ids: TokenIds
    salts: Annotated[tuple[Salt, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]
    """16 random bytes for each started 240 tokens; kept by the asker, told to the renter only."""


class ProvedChunk(Message, frozen=True):
    """One proof, verified by the prover before it was returned."""

    shown: ShownProof
    spent: Spent


class ProfileReply(Message, frozen=True):
    """The proof profile this prover works with."""

    profile_id: Digest
    profile: ProfileName
    ezkl: str
    srs_kind: SrsKind
    srs_sha256: Digest
    vk_sha256: Digest


class ProveReply(Message, frozen=True):
    """The proofs of an interval in token order; each but the last counts 240 tokens."""

    profile: ProfileReply
    proofs: tuple[ProvedChunk, ...]
