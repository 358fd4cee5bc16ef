"""A revert told apart from other refusals, because callers decide on the contract's reason."""

from __future__ import annotations

import enum

from nodeapp.core.errors import Rejected, Unavailable


class Refusal(enum.Enum):
    """What a marketplace's revert string means, the same for every ABI generation."""

    ENDED = "the session has ended"
    NOT_HOST = "we are not the session's host"
    HOST_INACTIVE = "the host is not active in the registry"
    BELOW_MINIMUM = "a claim below the smallest allowed"
    FIRST_CLAIM_TOO_SMALL = "a first claim below the proof interval"
    TOO_FAST = "more tokens than the time since the last proof allows"
    OVER_DEPOSIT = "more tokens than the deposit pays for"
    PROOF_USED = "the proof hash was used before"
    TOO_EARLY = "the dispute window is open"
    NOT_A_PARTY = "neither depositor nor host"
    NOT_TIMED_OUT = "the session has not timed out"
    PRICE_TOO_LOW = "a price below the host's"
    BAD_DEPOSIT = "a deposit out of bounds"
    BAD_TERMS = "proof interval, timeout or duration out of bounds"
    NO_MODEL = "a model unknown to the host or the registry, or without a price"
    PAUSED = "the marketplace is paused"
    OTHER = "another reason"


_MEANINGS: dict[str, Refusal] = {
    # v2 and v3
    "not active": Refusal.ENDED,
    "not host": Refusal.NOT_HOST,
    "host not active": Refusal.HOST_INACTIVE,
    "min tokens": Refusal.BELOW_MINIMUM,
    "low first": Refusal.FIRST_CLAIM_TOO_SMALL,
    "too many": Refusal.TOO_FAST,
    "over dep": Refusal.OVER_DEPOSIT,
    "proof already used": Refusal.PROOF_USED,
    "dispute wait": Refusal.TOO_EARLY,
    "not depositor or host": Refusal.NOT_A_PARTY,
    "not timeout": Refusal.NOT_TIMED_OUT,
    "low price": Refusal.PRICE_TOO_LOW,
    "low deposit": Refusal.BAD_DEPOSIT,
    "low interval": Refusal.BAD_TERMS,
    "bad timeout": Refusal.BAD_TERMS,
    "bad model": Refusal.NO_MODEL,
    "no model": Refusal.NO_MODEL,
    "no model pricing": Refusal.NO_MODEL,
    "enforcedpause()": Refusal.PAUSED,
    "pausable: paused": Refusal.PAUSED,
    "paused": Refusal.PAUSED,
    # v1
    "must wait dispute window": Refusal.TOO_EARLY,
    "excessive tokens claimed": Refusal.TOO_FAST,
    "only host can submit proof": Refusal.NOT_HOST,
}
ENFORCED_PAUSE = "custom error 0xd93c0665"
"""EnforcedPause(), the error of OpenZeppelin 5's Pausable."""


def refusal_of(reason: str) -> Refusal:
    """What a revert string of the marketplace means; letter case does not matter."""
    if reason.startswith(ENFORCED_PAUSE):
        return Refusal.PAUSED
    return _MEANINGS.get(reason.strip().lower(), Refusal.OTHER)


class Reverted(Rejected):
    """A contract refused a call; `reason` is its revert string, empty when it gave none."""

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(f"{function} reverted: {reason or 'no reason given'}")
        self.function = function
        self.reason = reason

    @property
    def refusal(self) -> Refusal:
        """What the reason means."""
        return refusal_of(self.reason)


class Disagreement(Unavailable):
    """The endpoints tell different chains and no majority decides."""


class WrongShape(Unavailable):
    """An endpoint, or a contract, answered something that was never a possible answer."""
