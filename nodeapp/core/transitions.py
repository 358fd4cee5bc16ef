"""What a change does to a session: apply(session, change) -> session, pure.

A change is journalled before it is applied anywhere else, so the journal replays to the same
state; a change that does not fit the state is refused and not journalled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from nodeapp.core.errors import Busy, InvalidRequest, PaymentRequired
from nodeapp.core.exposure import (
    MAX_LIVE_PROMPT_BYTES,
    MAX_UNCLAIMED,
    least_claim,
    max_forgotten,
    max_prompt_bytes,
)
from nodeapp.core.ids import RequestId
from nodeapp.core.session import (
    AcceptedProof,
    Change,
    ClaimPrepared,
    ClaimSealed,
    ClaimStage,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    ContractReceiveSessionOpened,
    EarningsWithdrawn,
    Ended,
    OpenRequest,
    Phase,
    PromptRecord,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    RequestResumed,
    Session,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.units import Tokens
from nodeapp.core.usage import extend_hash, initial_hash


def open_session(change: ContractReceiveSessionOpened, *, first_interval: int = 0) -> Session:
    """The state a session starts in."""
    terms = change.terms
    return Session(
        terms=terms,
        running_hash=initial_hash(terms.chain_id, terms.marketplace, terms.job_id),
        opened_in=change.block,
        opened_tx=change.tx_hash,
        first_interval=first_interval,
    )


def is_same_creation(session: Session, change: ContractReceiveSessionOpened) -> bool:
    """Whether this is the session we know, mined once more; only its time may differ."""
    start = session.terms.started_at
    return session.terms == msgspec.structs.replace(change.terms, started_at=start)


def apply(session: Session, change: Change) -> Session:  # noqa: C901, PLR0912  # one closed union
    """The state after `change`; a pure function.

    Raises:
        Rejected: the change does not fit the state (it must not be journalled then).
    """
    match change:
        case ContractReceiveSessionOpened():
            return _opened_again(session, change)
        case RenterAuthenticated():
            return _authenticated(session, change)
        case RequestAuthorised() | RequestResumed() | TokensProduced() | RequestEnded():
            return _apply_request(session, change)
        case RenterSentReceipt():
            return _receipt(session, change)
        case SessionClosing():
            is_new = session.phase is Phase.ACTIVE
            return (
                msgspec.structs.replace(session, closing=change.reason or "closed")
                if is_new
                else session
            )
        case ClaimPrepared():
            return _prepared(session, change)
        case ClaimSealed():
            return _sealed(session, change)
        case ContractReceiveProofAccepted():
            return _proof_accepted(session, change)
        case ContractReceiveSessionEnded():
            ended = Ended(
                change.phase,
                change.host_earnings,
                change.refund,
                change.block,
                change.at,
                change.tx_hash,
                change.tokens_used,
            )
            return msgspec.structs.replace(session, ended=ended)
        case EarningsWithdrawn():
            return msgspec.structs.replace(
                session,
                withdrawn=change.amount,
                withdrawn_in=change.block,
                withdrawn_tx=change.tx_hash,
            )
        case _:
            assert_never(change)


def _opened_again(session: Session, change: ContractReceiveSessionOpened) -> Session:
    if not is_same_creation(session, change):
        raise InvalidRequest(f"session {change.job_id} is another one than the one known here")
    return msgspec.structs.replace(
        session, terms=change.terms, opened_in=change.block, opened_tx=change.tx_hash
    )


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
        prompts=_newest_prompts(_live_prompts((*session.prompts, prompt), session.first_kept)),
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
    covered = session.covered
    least = least_claim(claimed=covered, proof_interval=terms.proof_interval)
    if session.affordable - covered < least:
        raise PaymentRequired(
            f"session {terms.job_id} has {session.affordable - covered} tokens left to claim,"
            f" the smallest claim is {least}; open a new session"
        )


def _produced(session: Session, change: TokensProduced) -> Session:
    is_cut_off = session.request is None and session.phase is Phase.CLOSING
    if is_cut_off or session.phase not in (Phase.ACTIVE, Phase.CLOSING):
        raise PaymentRequired(f"session {change.job_id} is {session.phase}; open a new session")
    if session.is_claimed_elsewhere:
        raise PaymentRequired(
            f"session {change.job_id} has claims this host's journal does not know;"
            " open a new session"
        )
    request = _require_request(session, change.request_id)
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
        and not session.is_claimed_elsewhere
        and session.phase in (Phase.ACTIVE, Phase.CLOSING)
        and claim.interval == session.intervals
        and claim.first_token == session.covered
        and claim.tokens > 0
        and claim.first_token + claim.tokens <= session.acknowledged
    )
    if not fits:
        raise InvalidRequest(f"claim {claim.interval} does not fit session {change.job_id}")
    return msgspec.structs.replace(session, claims=(*session.claims, claim))


def _sealed(session: Session, change: ClaimSealed) -> Session:
    """Its ids are in the proof and the transcript now: stream and prompts let go of them."""
    newest = session.claims[-1] if session.claims else None
    if newest is None or newest.interval != change.interval or newest.stage is ClaimStage.SEALED:
        raise InvalidRequest(f"session {change.job_id} has no claim {change.interval} to seal")
    claim = msgspec.structs.replace(
        newest,
        salts=(),
        stage=ClaimStage.SEALED,
        proof_hash=change.proof_hash,
        proof_cid=change.proof_cid,
        transcript_cid=change.transcript_cid,
        last_commitment=change.last_commitment,
        proofs=change.proofs,
        proof_bytes=change.proof_bytes,
        prove_cpu_seconds=change.prove_cpu_seconds,
    )
    end = Tokens(claim.first_token + claim.tokens)
    return msgspec.structs.replace(
        session,
        claims=(*session.claims[:-1], claim),
        request=_keep_claimed_ids(session, end),
        first_kept=end,
        stream=session.stream[end - session.first_kept :],
        prompts=_live_prompts(session.prompts, end),
    )


def _proof_accepted(session: Session, change: ContractReceiveProofAccepted) -> Session:
    """The contract takes a hash once, so one that is known is the same event read again."""
    others = tuple(proof for proof in session.proofs if proof.proof_hash != change.proof_hash)
    proof = AcceptedProof(change.proof_hash, change.tokens, change.at, change.block, change.tx_hash)
    return msgspec.structs.replace(session, proofs=(*others, proof))


def _keep_claimed_ids(session: Session, end: int) -> OpenRequest | None:
    request = session.request
    if request is None:
        return None
    start = max(0, request.first_token - session.first_kept)
    taken = session.stream[start : end - session.first_kept]
    return msgspec.structs.replace(request, claimed_ids=request.claimed_ids + taken)


def _require_request(session: Session, request_id: RequestId) -> OpenRequest:
    if session.request is None or session.request.request_id != request_id:
        raise InvalidRequest(f"request {request_id} is not open in session {session.terms.job_id}")
    return session.request


def _forget_unacknowledged(session: Session) -> Session:
    kept = session.stream[: session.acknowledged - session.first_kept]
    forgotten = Tokens(session.forgotten + session.produced - session.acknowledged)
    if forgotten > max_forgotten(session.acknowledged):
        raise PaymentRequired(
            f"{forgotten} tokens of session {session.terms.job_id} were sent and never"
            " acknowledged; send the newest receipt first"
        )
    return msgspec.structs.replace(session, stream=kept, forgotten=forgotten)


def _live_prompts(prompts: Sequence[PromptRecord], sealed: int) -> tuple[PromptRecord, ...]:
    """Drop prompts whose answer is all in sealed claims, or that got none; the next ends it."""
    ends = [later.first_token for later in prompts[1:]]
    return tuple(
        prompt
        for index, prompt in enumerate(prompts)
        if index >= len(ends) or ends[index] > max(sealed, prompt.first_token)
    )


def _newest_prompts(prompts: tuple[PromptRecord, ...]) -> tuple[PromptRecord, ...]:
    """The newest ones that fit into one transcript."""
    size = 0
    for index in range(len(prompts) - 1, -1, -1):
        size += len(prompts[index].sealed)
        if size > MAX_LIVE_PROMPT_BYTES:
            return prompts[index + 1 :]
    return prompts
