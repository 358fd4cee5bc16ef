"""One paid session as plain values: its state, and everything that can happen to it.

What a change does to a state is in transitions.py, what a state obliges the node to do is in
steps.py.

The token stream of a session is numbered from 0 over all its requests. Counters:
claimed <= claiming <= acknowledged <= produced; only acknowledged tokens are ever claimed.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from nodeapp.core.ids import Address, Cid, JobId, ModelId, RequestId
from nodeapp.core.pricing import affordable_tokens
from nodeapp.core.units import BaseUnits, BlockTime, PricePerToken, Tokens


class Phase(StrEnum):
    """Where a session stands on chain, as far as confirmed blocks tell."""

    ACTIVE = "active"
    CLOSING = "closing"
    COMPLETED = "completed"
    TIMED_OUT = "timed_out"


class ClaimStage(StrEnum):
    """How far one claim is."""

    PREPARED = "prepared"
    SEALED = "sealed"


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the contract says of a session; never changes."""

    chain_id: int
    marketplace: Address
    job_id: JobId
    renter: Address
    host: Address
    model_id: ModelId
    asset: Address
    deposit: BaseUnits
    price_per_token: PricePerToken
    proof_interval: Tokens
    proof_timeout_seconds: int
    max_duration_seconds: int
    started_at: BlockTime


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One interval on its way to the chain; at most one per session."""

    interval: int
    first_token: Tokens
    tokens: Tokens
    salts: tuple[bytes, ...]
    previous_commitment: bytes
    stage: ClaimStage = ClaimStage.PREPARED
    proof_hash: bytes = b""
    proof_cid: Cid = Cid("")
    transcript_cid: Cid = Cid("")
    last_commitment: bytes = b""
    proofs: int = 0
    proof_bytes: int = 0
    prove_cpu_seconds: float = 0.0


class OpenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt being answered."""

    request_id: RequestId
    first_token: Tokens
    max_tokens: Tokens
    claimed_ids: tuple[int, ...] = ()
    """Ids of this answer that a claim took out of the stream; a resumed engine needs them."""


class PromptRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt, readable by the renter only, and where its answer starts in the stream."""

    request_id: RequestId
    first_token: Tokens
    sealed: bytes


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the node knows of one paid session."""

    terms: Terms
    running_hash: bytes
    phase: Phase = Phase.ACTIVE
    renter_key: bytes = b""
    """Compressed secp256k1 key of the depositor, 33 bytes; pinned at first authentication."""
    claimed: Tokens = Tokens(0)
    acknowledged: Tokens = Tokens(0)
    stream: tuple[int, ...] = ()
    """Token ids [claimed, produced)."""
    request: OpenRequest | None = None
    prompts: tuple[PromptRecord, ...] = ()
    """Prompts whose answers reach into the unclaimed stream."""
    claim: Claim | None = None
    intervals: int = 0
    previous_commitment: bytes = bytes(32)
    previous_proof_hash: bytes = bytes(32)
    last_proof_at: BlockTime = BlockTime(0)
    host_earnings: BaseUnits = BaseUnits(0)
    refund: BaseUnits = BaseUnits(0)
    receipt_signature: bytes = b""
    claims: tuple[Claim, ...] = ()
    """Mined claims, without their salts."""
    withdrawn: BaseUnits | None = None
    forgotten: Tokens = Tokens(0)
    """Sent and never acknowledged: given away."""
    prompt_bytes: int = 0
    """Sealed prompts journalled so far."""
    is_claimed_elsewhere: bool = False
    """The chain has a claim this journal does not know; what it covers cannot be told."""

    @property
    def produced(self) -> Tokens:
        """Tokens journalled before they were sent."""
        return Tokens(self.claimed + len(self.stream))

    @property
    def affordable(self) -> Tokens:
        """Tokens the deposit pays for, whole session."""
        return affordable_tokens(self.terms.deposit, self.terms.price_per_token)

    @property
    def is_open(self) -> bool:
        """New requests may be authorised."""
        return self.phase is Phase.ACTIVE

    @property
    def is_settled(self) -> bool:
        """Ended on chain, and nothing of it is still to be withdrawn."""
        is_ended = self.phase in (Phase.COMPLETED, Phase.TIMED_OUT)
        return is_ended and (self.withdrawn is not None or self.host_earnings == 0)

    def ids(self, first: int, count: int) -> tuple[int, ...]:
        """Token ids [first, first + count) of the unclaimed stream; () when claimed already."""
        start = first - self.claimed
        return self.stream[start : start + count] if start >= 0 else ()

    def delivered_ids(self) -> tuple[int, ...]:
        """Ids of the open request that the renter has acknowledged."""
        if self.request is None:
            return ()
        first = Tokens(max(self.request.first_token, self.claimed))
        return self.request.claimed_ids + self.ids(first, self.acknowledged - first)


class SessionChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of everything that can happen to a session."""

    job_id: JobId


class ContractReceiveSessionOpened(SessionChange, frozen=True):
    """A confirmed SessionJobCreatedForModel names us as host."""

    terms: Terms


class RenterAuthenticated(SessionChange, frozen=True):
    """The depositor proved its key in a handshake."""

    renter_key: bytes


class RequestAuthorised(SessionChange, frozen=True):
    """max_tokens of the deposit are reserved for one prompt."""

    request_id: RequestId
    max_tokens: Tokens
    sealed_prompt: bytes


class RequestResumed(SessionChange, frozen=True):
    """The renter is back; what it did not acknowledge is forgotten and made again."""

    request_id: RequestId


class TokensProduced(SessionChange, frozen=True):
    """Written before the tokens leave the node."""

    request_id: RequestId
    token_ids: tuple[int, ...]


class RenterSentReceipt(SessionChange, frozen=True):
    """A valid signed receipt: the first `tokens` tokens of the session were received."""

    tokens: Tokens
    running_hash: bytes
    signature: bytes


class RequestEnded(SessionChange, frozen=True):
    """No more tokens of this request; the reservation is released."""

    request_id: RequestId
    reason: str


class SessionClosing(SessionChange, frozen=True):
    """Renter, operator or idleness ends the session: claim the rest, then complete."""

    reason: str


class ClaimPrepared(SessionChange, frozen=True):
    """An interval is fixed; from here on it is always the same tokens and salts."""

    claim: Claim


class ClaimSealed(SessionChange, frozen=True):
    """Proof made, verified and stored; the envelope must not be made again."""

    interval: int
    proof_hash: bytes
    proof_cid: Cid
    transcript_cid: Cid
    last_commitment: bytes
    proofs: int
    proof_bytes: int
    prove_cpu_seconds: float


class ContractReceiveProofAccepted(SessionChange, frozen=True):
    """A confirmed ProofSubmitted of ours."""

    tokens: Tokens
    proof_hash: bytes
    at: BlockTime


class ContractReceiveSessionEnded(SessionChange, frozen=True):
    """A confirmed SessionCompleted or SessionTimedOut."""

    phase: Phase
    host_earnings: BaseUnits
    refund: BaseUnits


class EarningsWithdrawn(SessionChange, frozen=True):
    """The session's share left the earnings contract."""

    amount: BaseUnits


Change = (
    ContractReceiveSessionOpened
    | RenterAuthenticated
    | RequestAuthorised
    | RequestResumed
    | TokensProduced
    | RenterSentReceipt
    | RequestEnded
    | SessionClosing
    | ClaimPrepared
    | ClaimSealed
    | ContractReceiveProofAccepted
    | ContractReceiveSessionEnded
    | EarningsWithdrawn
)
