"""What a renter needs to check one claim on its own, stored sealed to the renter's key.

CBOR; token ids are those of the claim in stream order, salts one per started 240 tokens.
Prompts are sealed inside once more, as the node keeps them: it stores no prompt in clear.
"""

from __future__ import annotations

from typing import Annotated

import cbor2
import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import JobId, RequestId
from nodeapp.wire.plain_cbor import decode_plain

MAX_TRANSCRIPT_BYTES = 8 << 20
MAX_TRANSCRIPT_ITEMS = 1 << 16


class SealedPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt and the place its answer starts at."""

    request_id: RequestId
    first_token: int
    sealed: bytes


class Transcript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The delivered tokens of one claim."""

    job_id: JobId
    interval: int
    first_token: int
    token_ids: tuple[int, ...]
    salts: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1)]
    prompts: tuple[SealedPrompt, ...]
    receipt_tokens: int
    receipt_signature: bytes
    v: int = 1


def encode_transcript(transcript: Transcript) -> bytes:
    """Canonical CBOR."""
    return bytes(
        cbor2.dumps(msgspec.to_builtins(transcript, builtin_types=(bytes,)), canonical=True)
    )


def decode_transcript(data: bytes) -> Transcript:
    """Parse an opened transcript.

    Raises:
        InvalidRequest: too long or not of this shape.
    """
    if len(data) > MAX_TRANSCRIPT_BYTES:
        raise InvalidRequest(f"transcript has {len(data)} bytes, {MAX_TRANSCRIPT_BYTES} allowed")
    plain = decode_plain(data, "transcript", max_items=MAX_TRANSCRIPT_ITEMS)
    try:
        return msgspec.convert(plain, Transcript, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"transcript: {error}") from error
