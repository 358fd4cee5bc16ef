"""Why a pool did not take a transaction, in whatever words its client says it."""

from __future__ import annotations

from enum import StrEnum

from nodeapp.core.errors import Rejected


class SendRefusal(StrEnum):
    """What to do next depends on this."""

    NONCE_USED = "nonce used"
    NONCE_TOO_HIGH = "nonce too high"
    REPLACEMENT = "replacement offers too little"
    UNDERPRICED = "fees too low"
    NO_FUNDS = "insufficient funds"
    OTHER = "other"


# In this order: the words of a later kind may be part of an earlier one's.
_WORDS: tuple[tuple[SendRefusal, tuple[str, ...]], ...] = (
    (
        SendRefusal.REPLACEMENT,
        (
            "replacement transaction underpriced",
            "replacement fee too low",
            "could not replace existing",  # Erigon
            "replacementnotallowed",  # Nethermind
            "gas price too low to replace",
        ),
    ),
    (
        SendRefusal.NONCE_USED,
        (
            "nonce too low",
            "nonce is too low",
            "oldnonce",  # Nethermind
            "nonce has already been used",
            "invalid transaction nonce",
        ),
    ),
    (
        SendRefusal.NONCE_TOO_HIGH,
        ("nonce too high", "nonce is too high", "noncetoofarinfuture"),  # the last: Nethermind
    ),
    (
        SendRefusal.NO_FUNDS,
        (
            "insufficient funds",
            "insufficientfunds",  # Nethermind
            "insufficient balance",
            "doesn't have enough funds",
            "upfront cost exceeds account balance",  # Besu
        ),
    ),
    (
        SendRefusal.UNDERPRICED,
        (
            "underpriced",
            "less than block base fee",
            "less than the base fee",
            "feetoolow",  # Nethermind
            "fee too low",
            "fee cap less than",
            "gas price below",
        ),
    ),
)


def refusal_of(message: str) -> SendRefusal:
    """Sort an endpoint's answer to eth_sendRawTransaction."""
    text = message.lower()
    for refusal, words in _WORDS:
        if any(word in text for word in words):
            return refusal
    return SendRefusal.OTHER


class SendRefused(Rejected):
    """A pool did not take a transaction; `refusal` says why."""

    def __init__(self, subject: str, message: str) -> None:
        self.refusal = refusal_of(message)
        super().__init__(f"{subject} refused: {message}")


class InsufficientFunds(Rejected):
    """The account cannot pay gas and value of a transaction; sending waits for a top-up."""
