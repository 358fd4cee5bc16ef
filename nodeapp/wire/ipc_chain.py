"""What `chain` may be asked: money questions of p2p, verbs of the operator, backups."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nodeapp.core.ids import Address, Cid, JobId, ModelId, TxHash
from nodeapp.core.units import BaseUnits, PricePerToken, Tokens
from nodeapp.wire.ipc import ErrorBody, Message

MAX_BATCH_TOKENS = 4096
MAX_REASON = 1000
RequestIdText = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
TokenBatch = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**21 - 1)], ...],
    msgspec.Meta(max_length=MAX_BATCH_TOKENS),
]


class OpenSessionRequest(Message, frozen=True):
    """A renter that proved `renter_key` wants to use its paid session."""

    job_id: JobId
    renter: Address
    renter_key: Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]


class SessionView(Message, frozen=True):
    """A session as others may see it; token counts are cumulative over the session."""

    job_id: JobId
    phase: str
    renter: Address
    model_id: ModelId
    asset: Address
    deposit: BaseUnits
    price_per_token: PricePerToken
    affordable: Tokens
    acknowledged: Tokens
    produced: Tokens
    claimed: Tokens
    running_hash: bytes
    proof_interval: Tokens
    open_request: str
    open_request_first: Tokens
    claims: int
    host_earnings: BaseUnits
    refund: BaseUnits


class JobRequest(Message, frozen=True):
    """Names one session."""

    job_id: JobId


class AuthoriseRequest(Message, frozen=True):
    """Reserve deposit for one prompt, or take it up again after a crash."""

    job_id: JobId
    request_id: RequestIdText
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    sealed_prompt: Annotated[bytes, msgspec.Meta(max_length=2 << 20)]


class Authorised(Message, frozen=True):
    """The reservation; `delivered_ids` are those of this request the renter already has."""

    max_tokens: Tokens
    first_token: Tokens
    acknowledged: Tokens
    running_hash: bytes
    delivered_ids: tuple[int, ...]


class ProducedRequest(Message, frozen=True):
    """Tokens about to be sent; journalled when the call returns."""

    job_id: JobId
    request_id: RequestIdText
    first_token: Annotated[int, msgspec.Meta(ge=0)]
    """Session-wide index of token_ids[0]; makes a repeated call harmless."""
    token_ids: TokenBatch


class ProducedBatch(Message, frozen=True):
    """Batches of different sessions that go into one journal write."""

    requests: Annotated[tuple[ProducedRequest, ...], msgspec.Meta(min_length=1, max_length=64)]


class ProducedReply(Message, frozen=True):
    """One entry for each request: None when it is journalled, else why not."""

    errors: tuple[ErrorBody | None, ...]


class ReceiptRequest(Message, frozen=True):
    """The renter's signed cumulative receipt."""

    job_id: JobId
    tokens: Annotated[int, msgspec.Meta(ge=0)]
    running_hash: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, msgspec.Meta(min_length=65, max_length=65)]


class ReceiptAccepted(Message, frozen=True):
    """How far the session is acknowledged now."""

    acknowledged: Tokens


class ReceiptBatch(Message, frozen=True):
    """Receipts of different sessions that go into one journal write."""

    requests: Annotated[tuple[ReceiptRequest, ...], msgspec.Meta(min_length=1, max_length=64)]


class ReceiptReply(Message, frozen=True):
    """One entry for each request: None when it was taken, else why not; how far each session is."""

    acknowledged: tuple[Tokens, ...]
    errors: tuple[ErrorBody | None, ...]


class EndRequest(Message, frozen=True):
    """No more tokens of this request."""

    job_id: JobId
    request_id: RequestIdText
    reason: Annotated[str, msgspec.Meta(max_length=64)]


class SignRecordRequest(Message, frozen=True):
    """A capability record to be signed by the wallet."""

    record: Annotated[bytes, msgspec.Meta(max_length=8192)]


class Signature(Message, frozen=True):
    """65 bytes r, s, v."""

    signature: bytes


class HostView(Message, frozen=True):
    """Who we are on chain."""

    address: Address
    public_key: bytes
    chain_id: int
    marketplace: Address
    block_number: int
    block_time: int
    is_registered: bool
    model_ids: tuple[ModelId, ...]
    usdc: Address
    prices: tuple[PricePerToken, ...]
    """In USDC, one per model id."""
    proof: Literal["required", "best_effort", "off"] = "required"
    """`chain.proof`: required, best_effort or off."""
    held: str = ""
    """Why nobody is served and nothing new is signed until an operator has decided."""


class TransactionView(Message, frozen=True):
    """One transaction of ours."""

    key: str
    tx_hash: TxHash
    gas_used: int
    block_number: int


class ClaimView(Message, frozen=True):
    """One mined or pending claim."""

    interval: int
    tokens: Tokens
    proof_hash: bytes
    """Empty until it is sealed."""
    proof_cid: Cid
    transcript_cid: Cid
    proofs: int
    """0 in a sealed claim: it has the renter's receipt and no proof."""
    proof_bytes: int
    prove_cpu_seconds: float
    mined: bool


class SessionDetail(Message, frozen=True):
    """A session with everything that happened to its money."""

    session: SessionView
    claims: tuple[ClaimView, ...]
    transactions: tuple[TransactionView, ...]
    withdrawn: BaseUnits


class SessionList(Message, frozen=True):
    """All sessions known to the journal."""

    sessions: tuple[SessionView, ...]


class BackupRequest(Message, frozen=True):
    """Copy the journal into this directory (absolute path)."""

    directory: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class HoldRequest(Message, frozen=True):
    """Serve nobody and sign nothing new, because of this; empty: go on."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


class BackupReply(Message, frozen=True):
    """The finished copy."""

    path: str
    sha256: str
    records: int
