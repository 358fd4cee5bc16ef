"""How much a host gives before it is paid: the limits of one session.

A renter may take tokens without acknowledging them, ask without taking any, or outrun the claims.
Each costs the host something that no claim brings back, so each has an end that an honest renter
on a bad line does not reach.
"""

from __future__ import annotations

from nodeapp.core.claims import MAX_CLAIM, MIN_CLAIM

MAX_UNCLAIMED = 4 * MAX_CLAIM
"""Acknowledged tokens waiting for a claim at which no new request begins (prover or chain down)."""
MAX_LIVE_PROMPT_BYTES = 4 << 20
"""Sealed prompts that go into one transcript; the oldest are left out."""
FREE_TOKENS = 512
"""Sent, lost with a connection and never acknowledged, over a whole session."""
TOKENS_PER_FREE_TOKEN = 4
FREE_PROMPT_BYTES = 64 << 20
"""Journalled for requests, over a whole session."""
PROMPT_BYTES_PER_TOKEN = 64 << 10


def max_forgotten(acknowledged: int) -> int:
    """Tokens that may stay unacknowledged for good, after so many acknowledged ones."""
    return FREE_TOKENS + acknowledged // TOKENS_PER_FREE_TOKEN


def max_prompt_bytes(acknowledged: int) -> int:
    """Bytes of sealed prompts a session may journal, after so many acknowledged tokens."""
    return FREE_PROMPT_BYTES + acknowledged * PROMPT_BYTES_PER_TOKEN


def least_claim(*, claimed: int, proof_interval: int) -> int:
    """Tokens of the smallest claim the contract takes after `claimed` ones."""
    return MIN_CLAIM if claimed else proof_interval


def closing_time(*, started_at: int, max_duration_seconds: int, proof_timeout_seconds: int) -> int:
    """Block time at which a session is ended while its last claim can still be mined.

    After started_at + max_duration anyone may end it, and what is unclaimed then is lost.
    """
    margin = min(proof_timeout_seconds, max_duration_seconds // 2)
    return started_at + max_duration_seconds - margin
