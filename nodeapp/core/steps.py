"""What a session obliges the node to do: next_step(session, now) -> step, pure.

Effects are not emitted but derived from the state, therefore a crash can neither lose nor repeat
one (decision 0001).
"""

from __future__ import annotations

import msgspec

from nodeapp.core.claims import claim_size
from nodeapp.core.exposure import closing_time, least_claim
from nodeapp.core.session import Claim, ClaimStage, Phase, Session
from nodeapp.core.units import BlockTime, Tokens

COMPLETION_MARGIN_SECONDS = 2
"""Added to the dispute window: the block that checks it may carry the same second."""
LEFT_SECONDS = 86_400
"""A session left to its renter stays in the books for so long after anybody may time it out: what
the renter pays for ending it late is then still booked to it."""


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


class TriggerTimeout(msgspec.Struct, frozen=True):
    """Send triggerSessionTimeout."""


class WithdrawEarnings(msgspec.Struct, frozen=True):
    """Pull the session's share out of the earnings contract."""


class WaitUntil(msgspec.Struct, frozen=True):
    """Nothing to do before this block time."""

    block_time: BlockTime


Step = (
    PrepareClaim
    | SealClaim
    | SubmitClaim
    | CompleteSession
    | TriggerTimeout
    | WithdrawEarnings
    | WaitUntil
)


def next_step(
    session: Session, now: BlockTime, *, interval_tokens: int, dispute_window_seconds: int
) -> Step | None:
    """What the node owes the chain in this state, or None.

    Args:
        now: time of the newest confirmed block.
        interval_tokens: the host's own upper bound for a claim interval.
        dispute_window_seconds: as the contract says.
    """
    phase = session.phase
    if phase is Phase.VANISHED:
        return None
    if phase is Phase.ACTIVE and session.acknowledged == session.covered and not session.claims:
        return None  # nearly every open session: a new block must not cost much for it
    if is_left_to_renter(session):
        return None
    if session.ended is not None:
        is_owed = session.host_earnings > 0 and session.withdrawn is None
        return WithdrawEarnings() if is_owed else None
    claim = session.claim
    if claim is not None:
        return SealClaim(claim) if claim.stage is ClaimStage.PREPARED else SubmitClaim(claim)
    tokens = _due(session, now, interval_tokens)
    if tokens:
        return PrepareClaim(tokens)
    is_silent = session.request is None or session.is_claimed_elsewhere
    if phase is Phase.CLOSING and is_silent:
        return _end(session, now, dispute_window_seconds)
    return None


def _end(session: Session, now: BlockTime, dispute_window_seconds: int) -> Step:
    """Whatever the contract allows first; both settle alike."""
    completable = session.last_proof_at + dispute_window_seconds + COMPLETION_MARGIN_SECONDS
    overdue = overdue_at(session)
    if now >= completable:
        return CompleteSession()
    if now >= overdue:
        return TriggerTimeout()
    return WaitUntil(BlockTime(min(completable, overdue)))


def is_left_to_renter(session: Session) -> bool:
    """Whether its end would cost the host gas and pay it nothing: no claim was or can be made.

    The renter may end it at any time, which pays the host minTokensFee before the first claim;
    after the time-out anybody may, and the whole deposit goes back.
    """
    return (
        session.phase is Phase.CLOSING
        and not session.proofs
        and not session.claims
        and session.request is None
        and session.acknowledged < session.terms.proof_interval
    )


def is_given_up(session: Session, now: BlockTime) -> bool:
    """Whether a session left to its renter is not waited for any more."""
    return is_left_to_renter(session) and now >= overdue_at(session) + LEFT_SECONDS


def overdue_at(session: Session) -> BlockTime:
    """Block time from which anybody may settle the session."""
    terms = session.terms
    return BlockTime(
        1
        + min(
            terms.started_at + terms.max_duration_seconds,
            session.last_proof_at + terms.proof_timeout_seconds,
        )
    )


def is_running_out(session: Session, now: BlockTime) -> bool:
    """Whether the session must be ended now, so that its last claim is still in time."""
    terms = session.terms
    ends_at = closing_time(
        started_at=terms.started_at,
        max_duration_seconds=terms.max_duration_seconds,
        proof_timeout_seconds=terms.proof_timeout_seconds,
    )
    return now >= ends_at and session.phase is Phase.ACTIVE


def _due(session: Session, now: BlockTime, interval_tokens: int) -> Tokens:
    if session.is_claimed_elsewhere:
        return Tokens(0)
    is_late = 2 * (now - session.last_proof_at) >= session.terms.proof_timeout_seconds
    return claim_size(
        unclaimed=session.acknowledged - session.covered,
        interval=min(session.terms.proof_interval, interval_tokens),
        least=least_claim(claimed=session.covered, proof_interval=session.terms.proof_interval),
        is_streaming=session.request is not None,
        is_urgent=session.phase is Phase.CLOSING or is_late,
    )
