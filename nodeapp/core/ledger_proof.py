"""The statement a ledger proof makes, as numbers: what the circuit is fed and what it shows.

One proof covers at most 240 token ids. Its input is a vector of 256 field elements

    [ids + 1, padded with 0 to 240 | 8 context limbs | 8 salt limbs]

and it shows (commitment to the whole vector, how many of the first 240 are not 0, the context
limbs). The context ties the count to one place in one session, so that a proof cannot be used
twice; the salt keeps a short transcript from being guessed out of its commitment. It says
nothing about which model made the tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, JobId, ModelId

IDS_PER_CHUNK = 240
CONTEXT_LIMBS = 8
SALT_LIMBS = 8
SALT_BYTES = 16
VECTOR_LENGTH = IDS_PER_CHUNK + CONTEXT_LIMBS + SALT_LIMBS
MAX_TOKEN_ID = (1 << 21) - 2
"""The circuit's range check bounds each element to 2^21; ids are shifted up by one."""
MAX_CHUNKS = 32
"""Proofs of one interval; 7680 tokens."""
CONTEXT_DOMAIN = b"fabnode/ledger/1"
TRANSCRIPT_DOMAIN = b"fabnode/transcript/1"
NO_COMMITMENT = bytes(32)
"""What the first chunk of a session names as its predecessor."""


@dataclass(frozen=True, slots=True)
class LedgerContext:
    """Where a chunk stands: one range of one session."""

    chain_id: int
    marketplace: Address
    job_id: JobId
    host: Address
    model_id: ModelId
    interval: int
    """Number of the claim within the session, from 0."""
    first_token_index: int
    """Position of the chunk's first token among the session's billed tokens, from 0."""
    previous_commitment: bytes
    """link(commitment) of the chunk before, 32 bytes; NO_COMMITMENT for the first."""


@dataclass(frozen=True, slots=True)
class LedgerStatement:
    """What one proof shows to everyone."""

    commitment: bytes
    """poseidon: the field element, 32 bytes little endian. kzg: curve point x | y, 64 bytes."""
    count: int
    context_limbs: tuple[int, ...]


def context_bytes(context: LedgerContext) -> bytes:
    """The hashed form, 176 bytes; integers are big endian, addresses and ids raw.

    "fabnode/ledger/1" 16 | chain_id 8 | marketplace 20 | job_id 32 | host 20 | model_id 32 |
    interval 8 | first_token_index 8 | previous_commitment 32.

    Raises:
        InvalidRequest: a number does not fit or an id is not hex of its length.
    """
    return b"".join(
        (
            CONTEXT_DOMAIN,
            _fixed("chain_id", context.chain_id, 8),
            _hex_bytes("marketplace", context.marketplace, 20),
            _fixed("job_id", context.job_id, 32),
            _hex_bytes("host", context.host, 20),
            _hex_bytes("model_id", context.model_id, 32),
            _fixed("interval", context.interval, 8),
            _fixed("first_token_index", context.first_token_index, 8),
            _exact("previous_commitment", context.previous_commitment, 32),
        )
    )


def context_limbs(context: LedgerContext) -> tuple[int, ...]:
    """First 128 bits of sha256(context_bytes) as 8 big-endian 16-bit numbers."""
    return _limbs(hashlib.sha256(context_bytes(context)).digest()[:16])


def salt_limbs(salt: bytes) -> tuple[int, ...]:
    """16 random bytes as 8 big-endian 16-bit numbers."""
    return _limbs(_exact("salt", salt, SALT_BYTES))


def chunk_ids(token_ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Cut an interval's ids into chunks of 240; only the last may be shorter.

    Raises:
        InvalidRequest: none at all, or more than MAX_CHUNKS chunks.
    """
    if not 1 <= len(token_ids) <= IDS_PER_CHUNK * MAX_CHUNKS:
        raise InvalidRequest(
            f"an interval has 1 to {IDS_PER_CHUNK * MAX_CHUNKS} tokens, not {len(token_ids)}"
        )
    return tuple(
        tuple(token_ids[start : start + IDS_PER_CHUNK])
        for start in range(0, len(token_ids), IDS_PER_CHUNK)
    )


def ledger_vector(
    token_ids: Sequence[int], context_limbs: Sequence[int], salt: bytes
) -> tuple[int, ...]:
    """The 256 numbers that are committed to.

    Raises:
        InvalidRequest: not 1 to 240 ids, an id out of range, limbs or salt of a wrong length.
    """
    if not 1 <= len(token_ids) <= IDS_PER_CHUNK:
        raise InvalidRequest(f"a chunk has 1 to {IDS_PER_CHUNK} tokens, not {len(token_ids)}")
    for token_id in token_ids:
        if not 0 <= token_id <= MAX_TOKEN_ID:
            raise InvalidRequest(f"token id {token_id} is outside 0 to {MAX_TOKEN_ID}")
    if len(context_limbs) != CONTEXT_LIMBS:
        raise InvalidRequest(f"context has {len(context_limbs)} limbs, need {CONTEXT_LIMBS}")
    padding = (0,) * (IDS_PER_CHUNK - len(token_ids))
    shifted = tuple(token_id + 1 for token_id in token_ids)
    return (*shifted, *padding, *context_limbs, *salt_limbs(salt))


def following(context: LedgerContext, *, count: int, commitment: bytes) -> LedgerContext:
    """The context of the chunk after one of `count` tokens with this commitment."""
    return replace(
        context,
        first_token_index=context.first_token_index + count,
        previous_commitment=link(commitment),
    )


def transcript_commitment(
    context: LedgerContext, token_ids: Sequence[int], salts: Sequence[bytes]
) -> bytes:
    """What an interval without a proof is committed by, 32 bytes.

    sha256("fabnode/transcript/1" | context_bytes | salt count 4 | salts of 16 | id count 4 | ids
    of 4), integers big endian. It hides and binds the ids as a proof's commitment does, but shows
    nobody who does not know them how many there are.

    Raises:
        InvalidRequest: an id or a salt is out of bounds, or there are none.
    """
    chunks = chunk_ids(token_ids)
    if len(salts) != len(chunks):
        raise InvalidRequest(f"{len(salts)} salts for {len(chunks)} chunks")
    return hashlib.sha256(
        b"".join(
            (
                TRANSCRIPT_DOMAIN,
                context_bytes(context),
                _fixed("salt count", len(salts), 4),
                *(_exact("salt", salt, SALT_BYTES) for salt in salts),
                _fixed("id count", len(token_ids), 4),
                *(_fixed("token id", token_id, 4) for token_id in token_ids),
            )
        )
    ).digest()


def link(commitment: bytes) -> bytes:
    """A commitment as its successor names it: itself if 32 bytes, else its sha256."""
    return commitment if len(commitment) == 32 else hashlib.sha256(commitment).digest()


def felt_hex(value: int) -> str:
    """A number as EZKL writes field elements: 32 bytes little endian, hex without prefix."""
    return value.to_bytes(32, "little").hex()


def public_instances(statement: LedgerStatement) -> tuple[str, ...]:
    """The instance column a verifier demands, in circuit order, as felt hex.

    A 32-byte commitment is the first instance. A 64-byte one (kzg) is no instance: it stands in
    the proof's first 64 bytes, and a verifier must compare it there.
    """
    shown = (statement.count, *statement.context_limbs)
    head = (statement.commitment.hex(),) if len(statement.commitment) == 32 else ()
    return (*head, *(felt_hex(value) for value in shown))


def _limbs(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))


def _fixed(name: str, value: int, length: int) -> bytes:
    if not 0 <= value < 1 << (8 * length):
        raise InvalidRequest(f"{name} {value} does not fit {length} bytes")
    return value.to_bytes(length, "big")


def _exact(name: str, data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise InvalidRequest(f"{name} has {len(data)} bytes, need {length}")
    return data


def _hex_bytes(name: str, text: str, length: int) -> bytes:
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise InvalidRequest(f"{name} is not hex") from error
    return _exact(name, data, length)
