"""One paid session as a state machine of plain values: apply(session, change) -> session.

A change is journalled before it is applied anywhere else, so the journal replays to the same
state. Effects are not emitted but derived: next_step(session, now) says what the node owes the
chain in this state, therefore a crash can neither lose nor repeat one (decision 0001).

The token stream of a session is numbered from 0 over all its requests. Counters:
claimed <= claiming <= acknowledged <= produced; only acknowledged tokens are ever claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import assert_never

import msgspec

from nodeapp.core.claims import claim_size
from nodeapp.core.errors import Busy, InvalidRequest, PaymentRequired
from nodeapp.core.exposure import (
    MAX_LIVE_PROMPT_BYTES,
    MAX_UNCLAIMED,
    closing_time,
    least_claim,
    max_forgotten,
    max_prompt_bytes,
)
from nodeapp.core.ids import Address, Cid, JobId, ModelId, RequestId
from nodeapp.core.pricing import affordable_tokens
from nodeapp.core.units import BaseUnits, BlockTime, PricePerToken, Tokens
from nodeapp.core.usage import extend_hash, initial_hash

COMPLETION_MARGIN_SECONDS = 2
"""Added to the dispute window: the block that checks it may carry the same second."""


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


def open_session(change: ContractReceiveSessionOpened) -> Session:
    """The state a session starts in."""
    terms = change.terms
    return Session(
        terms=terms,
        running_hash=initial_hash(terms.chain_id, terms.marketplace, terms.job_id),
        last_proof_at=terms.started_at,
    )


def apply(session: Session, change: Change) -> Session:  # noqa: C901, PLR0912  # one closed union
    """The state after `change`; a pure function.

    Raises:
        Rejected: the change does not fit the state (it must not be journalled then).
    """
    match change:
        case ContractReceiveSessionOpened():
            return session
        case RenterAuthenticated():
            return _authenticated(session, change)
        case RequestAuthorised() | RequestResumed() | TokensProduced() | RequestEnded():
            return _apply_request(session, change)
        case RenterSentReceipt():
            return _receipt(session, change)
        case SessionClosing():
            closing = Phase.CLOSING if session.phase is Phase.ACTIVE else session.phase
            return msgspec.structs.replace(session, phase=closing)
        case ClaimPrepared():
            return _prepared(session, change)
        case ClaimSealed():
            return _sealed(session, change)
        case ContractReceiveProofAccepted():
            return _proof_accepted(session, change)
        case ContractReceiveSessionEnded():
            return msgspec.structs.replace(
                session,
                phase=change.phase,
                host_earnings=change.host_earnings,
                refund=change.refund,
                request=None,
                claim=None,
                stream=(),
                prompts=(),
            )
        case EarningsWithdrawn():
            return msgspec.structs.replace(session, withdrawn=change.amount)
        case _:
            assert_never(change)


def _authenticated(session: Session, change: RenterAuthenticated) -> Session:
    if session.renter_key not in (b"", change.renter_key):
        raise InvalidRequest(f"session {change.job_id} is pinned to another renter key")
    return msgspec.structs.replace(session, renter_key=change.renter_key)


def _apply_request(
    session: Session, change: RequestAuthorised | RequestResumed | TokensProduced | RequestEnded
) -> Session:
    match change:
        case RequestAuthorised():
            return _authorised(session, change)
        case RequestResumed():
            _require_request(session, change.request_id)
            return _forget_unacknowledged(session)
        case TokensProduced():
            return _produced(session, change)
        case RequestEnded():
            if session.request is None or session.request.request_id != change.request_id:
                return session
            return msgspec.structs.replace(session, request=None)
        case _:
            assert_never(change)


def _authorised(session: Session, change: RequestAuthorised) -> Session:
    if not session.is_open:
        raise PaymentRequired(f"session {change.job_id} is {session.phase}; open a new session")
    if session.request is not None:
        raise Busy(f"session {change.job_id} is answering another request", retry_after_seconds=1.0)
    session = _forget_unacknowledged(session)
    prompt_bytes = session.prompt_bytes + len(change.sealed_prompt)
    _check_exposure(session, prompt_bytes)
    if session.produced + change.max_tokens > session.affordable:
        raise PaymentRequired(
            f"session {change.job_id} pays for {session.affordable} tokens,"
            f" {session.acknowledged} used, {change.max_tokens} asked"
        )
    first = session.produced
    prompt = PromptRecord(change.request_id, first, change.sealed_prompt)
    return msgspec.structs.replace(
        session,
        request=OpenRequest(change.request_id, first, change.max_tokens),
        prompts=_newest_prompts(_live_prompts((*session.prompts, prompt), session.claimed)),
        prompt_bytes=prompt_bytes,
    )


def _check_exposure(session: Session, prompt_bytes: int) -> None:
    """Refuse a new request whose tokens would not, or could not, be paid."""
    terms = session.terms
    waiting = session.acknowledged - session.claimed
    if waiting > MAX_UNCLAIMED:
        raise Busy(f"{waiting} tokens of the session wait for their claim", retry_after_seconds=5)
    if prompt_bytes > max_prompt_bytes(session.acknowledged):
        raise PaymentRequired(
            f"prompts of session {terms.job_id} have {prompt_bytes} bytes for"
            f" {session.acknowledged} acknowledged tokens; open a new session"
        )
    settled = session.claimed + (session.claim.tokens if session.claim is not None else 0)
    least = least_claim(claimed=settled, proof_interval=terms.proof_interval)
    if session.affordable - settled < least:
        raise PaymentRequired(
            f"session {terms.job_id} has {session.affordable - settled} tokens left to claim,"
            f" the smallest claim is {least}; open a new session"
        )


def _produced(session: Session, change: TokensProduced) -> Session:
    request = _require_request(session, change.request_id)
    if session.phase in (Phase.COMPLETED, Phase.TIMED_OUT):
        raise PaymentRequired(f"session {change.job_id} is {session.phase}; open a new session")
    if session.produced + len(change.token_ids) > request.first_token + request.max_tokens:
        raise PaymentRequired(
            f"request {change.request_id} is over its {request.max_tokens} tokens"
        )
    return msgspec.structs.replace(session, stream=session.stream + change.token_ids)


def _receipt(session: Session, change: RenterSentReceipt) -> Session:
    """Accept a receipt that moves forward and hashes exactly what was sent."""
    if change.tokens <= session.acknowledged:
        return session
    if change.tokens > session.produced:
        raise InvalidRequest(f"receipt for {change.tokens} tokens, only {session.produced} sent")
    newly = session.ids(session.acknowledged, change.tokens - session.acknowledged)
    running = extend_hash(session.running_hash, newly)
    if running != change.running_hash:
        raise InvalidRequest(f"receipt for {change.tokens} tokens has another running hash")
    return msgspec.structs.replace(
        session,
        acknowledged=change.tokens,
        running_hash=running,
        receipt_signature=change.signature,
    )


def _prepared(session: Session, change: ClaimPrepared) -> Session:
    claim = change.claim
    fits = (
        session.claim is None
        and session.phase in (Phase.ACTIVE, Phase.CLOSING)
        and claim.interval == session.intervals
        and claim.first_token == session.claimed
        and claim.tokens > 0
        and claim.first_token + claim.tokens <= session.acknowledged
    )
    if not fits:
        raise InvalidRequest(f"claim {claim.interval} does not fit session {change.job_id}")
    return msgspec.structs.replace(session, claim=claim, intervals=session.intervals + 1)


def _sealed(session: Session, change: ClaimSealed) -> Session:
    if session.claim is None or session.claim.interval != change.interval:
        raise InvalidRequest(f"session {change.job_id} has no claim {change.interval}")
    claim = msgspec.structs.replace(
        session.claim,
        stage=ClaimStage.SEALED,
        proof_hash=change.proof_hash,
        proof_cid=change.proof_cid,
        transcript_cid=change.transcript_cid,
        last_commitment=change.last_commitment,
        proofs=change.proofs,
        proof_bytes=change.proof_bytes,
        prove_cpu_seconds=change.prove_cpu_seconds,
    )
    return msgspec.structs.replace(session, claim=claim)


def _proof_accepted(session: Session, change: ContractReceiveProofAccepted) -> Session:
    claim = session.claim
    claimed = Tokens(session.claimed + change.tokens)
    if claim is None or claim.proof_hash != change.proof_hash:
        return _claimed_elsewhere(session, change, claimed)
    return msgspec.structs.replace(
        session,
        claim=None,
        request=_keep_claimed_ids(session, change.tokens),
        claimed=claimed,
        stream=session.stream[change.tokens :],
        prompts=_live_prompts(session.prompts, claimed),
        previous_commitment=claim.last_commitment,
        previous_proof_hash=claim.proof_hash,
        last_proof_at=change.at,
        claims=(*session.claims, msgspec.structs.replace(claim, salts=())),
    )


def _claimed_elsewhere(
    session: Session, change: ContractReceiveProofAccepted, claimed: Tokens
) -> Session:
    """A claim from before this journal was restored: claiming its tokens again would be theft."""
    return msgspec.structs.replace(
        session,
        phase=Phase.CLOSING if session.phase is Phase.ACTIVE else session.phase,
        is_claimed_elsewhere=True,
        request=None,
        claim=None,
        claimed=claimed,
        acknowledged=Tokens(max(session.acknowledged, claimed)),
        stream=session.stream[change.tokens :],
        prompts=(),
        last_proof_at=change.at,
    )


def _keep_claimed_ids(session: Session, tokens: int) -> OpenRequest | None:
    request = session.request
    if request is None:
        return None
    start = max(0, request.first_token - session.claimed)
    taken = session.stream[start:tokens]
    return msgspec.structs.replace(request, claimed_ids=request.claimed_ids + taken)


def _require_request(session: Session, request_id: RequestId) -> OpenRequest:
    if session.request is None or session.request.request_id != request_id:
        raise InvalidRequest(f"request {request_id} is not open in session {session.terms.job_id}")
    return session.request


def _forget_unacknowledged(session: Session) -> Session:
    kept = session.stream[: session.acknowledged - session.claimed]
    forgotten = Tokens(session.forgotten + session.produced - session.acknowledged)
    if forgotten > max_forgotten(session.acknowledged):
        raise PaymentRequired(
            f"{forgotten} tokens of session {session.terms.job_id} were sent and never"
            " acknowledged; send the newest receipt first"
        )
    return msgspec.structs.replace(session, stream=kept, forgotten=forgotten)


def _live_prompts(prompts: Sequence[PromptRecord], claimed: int) -> tuple[PromptRecord, ...]:
    """Drop prompts whose whole answer is claimed, or that got none; the next one ends it."""
    ends = [later.first_token for later in prompts[1:]]
    return tuple(
        prompt
        for index, prompt in enumerate(prompts)
        if index >= len(ends) or ends[index] > max(claimed, prompt.first_token)
    )


def _newest_prompts(prompts: tuple[PromptRecord, ...]) -> tuple[PromptRecord, ...]:
    """The newest ones that fit into one transcript."""
    size = 0
    for index in range(len(prompts) - 1, -1, -1):
        size += len(prompts[index].sealed)
        if size > MAX_LIVE_PROMPT_BYTES:
            return prompts[index + 1 :]
    return prompts


class PrepareClaim(msgspec.Struct, frozen=True):
    """Fix the next interval."""

    tokens: Tokens


class SealClaim(msgspec.Struct, frozen=True):
    """Prove the interval and store envelope and transcript."""

    claim: Claim


class SubmitClaim(msgspec.Struct, frozen=True):
    """Send submitProofOfWork."""

    claim: Claim


class CompleteSession(msgspec.Struct, frozen=True):
    """Send completeSessionJob."""


class WithdrawEarnings(msgspec.Struct, frozen=True):
    """Pull the session's share out of the earnings contract."""


class WaitUntil(msgspec.Struct, frozen=True):
    """Nothing to do before this block time."""

    block_time: BlockTime


Step = PrepareClaim | SealClaim | SubmitClaim | CompleteSession | WithdrawEarnings | WaitUntil


def next_step(
    session: Session, now: BlockTime, *, interval_tokens: int, dispute_window_seconds: int
) -> Step | None:
    """What the node owes the chain in this state, or None.

    Args:
        now: time of the newest confirmed block.
        interval_tokens: the host's own upper bound for a claim interval.
        dispute_window_seconds: as the contract says.
    """
    if session.phase in (Phase.COMPLETED, Phase.TIMED_OUT):
        is_owed = session.host_earnings > 0 and session.withdrawn is None
        return WithdrawEarnings() if is_owed else None
    if session.claim is not None:
        if session.claim.stage is ClaimStage.PREPARED:
            return SealClaim(session.claim)
        return SubmitClaim(session.claim)
    tokens = _due(session, now, interval_tokens)
    if tokens:
        return PrepareClaim(tokens)
    if session.phase is Phase.CLOSING and session.request is None:
        earliest = session.last_proof_at + dispute_window_seconds + COMPLETION_MARGIN_SECONDS
        if now < earliest:
            return WaitUntil(BlockTime(earliest))
        return CompleteSession()
    return None


def is_running_out(session: Session, now: BlockTime) -> bool:
    """Whether the session must be ended now, so that its last claim is still in time."""
    terms = session.terms
    return session.phase is Phase.ACTIVE and now >= closing_time(
        started_at=terms.started_at,
        max_duration_seconds=terms.max_duration_seconds,
        proof_timeout_seconds=terms.proof_timeout_seconds,
    )


def _due(session: Session, now: BlockTime, interval_tokens: int) -> Tokens:
    if session.is_claimed_elsewhere:
        return Tokens(0)
    is_late = 2 * (now - session.last_proof_at) >= session.terms.proof_timeout_seconds
    return claim_size(
        unclaimed=session.acknowledged - session.claimed,
        interval=min(session.terms.proof_interval, interval_tokens),
        least=least_claim(claimed=session.claimed, proof_interval=session.terms.proof_interval),
        is_streaming=session.request is not None,
        is_urgent=session.phase is Phase.CLOSING or is_late,
    )
