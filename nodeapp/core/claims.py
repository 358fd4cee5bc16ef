"""When a claim is due and how large it is: the marketplace's rules, nothing padded.

Rules of submitProofOfWork that shape this: a claim has >= MIN_CLAIM tokens, the first one
>= proofInterval, and no more than the model's rate limit times the seconds since the last one; a
session without a claim for proofTimeoutWindow may be timed out by anyone.
While a request runs, MIN_CLAIM tokens are held back so that what remains at the end is always
large enough to be claimed; unpaid exposure is therefore <= interval + MIN_CLAIM.
Sessions with proofInterval > MAX_CLAIM could never be claimed; chain.max_proof_interval_tokens
keeps them out.
"""

from __future__ import annotations

from nodeapp.core.units import Tokens

MIN_CLAIM = 100
"""JobMarketplace.MIN_PROVEN_TOKENS."""


MAX_CLAIM = 1920
"""Tokens of one claim: eight ledger proofs of 240."""


def claim_size(
    *, unclaimed: int, interval: int, least: int, is_streaming: bool, is_urgent: bool
) -> Tokens:
    """Tokens to claim now; 0: nothing is due.

    Args:
        unclaimed: delivered (acknowledged) but not yet claimed.
        interval: tokens after which a claim is due.
        least: the smallest claim the contract takes now: proofInterval for the first one of a
            session, MIN_CLAIM afterwards.
        is_streaming: a request is open, more tokens are coming.
        is_urgent: the session is closing, or its proof window is half gone.
    """
    if is_urgent:
        return _cut(unclaimed, least) if unclaimed >= least else Tokens(0)
    size = unclaimed - MIN_CLAIM if is_streaming else unclaimed
    return _cut(size, least) if size >= max(interval, least) else Tokens(0)


def claimable_from(*, last_proof_at: int, tokens: int, tokens_per_second: int) -> int:
    """Block time from which a claim of so many tokens is within the model's rate limit.

    The contract takes tokens <= seconds since the last proof * limit.
    """
    return last_proof_at + -(-tokens // tokens_per_second)


def _cut(size: int, least: int) -> Tokens:
    """At most MAX_CLAIM, leaving no remainder too small to be claimed where `least` allows it."""
    if size <= MAX_CLAIM:
        return Tokens(size)
    leaves_enough = size - MAX_CLAIM >= MIN_CLAIM
    return Tokens(MAX_CLAIM if leaves_enough else max(least, MAX_CLAIM - MIN_CLAIM))
