"""One answer on its way to one renter, the same for every transport: pure bookkeeping.

The relay feeds what the engine makes and what the renter acknowledges; the machine says how many
tokens may leave now and when the request is over. Tokens are numbered session-wide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Delivery:
    """Counters of one answer; first <= acknowledged <= sent <= made."""

    first_token: int
    made: int
    sent: int
    acknowledged: int
    window: int
    finish_reason: str = ""

    @property
    def sendable(self) -> int:
        """Tokens that may leave now: made but not sent, inside the receipt window."""
        return max(0, min(self.made - self.sent, self.acknowledged + self.window - self.sent))

    @property
    def is_over(self) -> bool:
        """The engine has finished and everything that left was acknowledged."""
        return bool(self.finish_reason) and self.made == self.sent == self.acknowledged

    @property
    def is_waiting_for_renter(self) -> bool:
        """Only a receipt lets it go on."""
        return (
            self.sendable == 0
            and self.sent > self.acknowledged
            and (self.made > self.sent or bool(self.finish_reason))
        )

    @property
    def completion_tokens(self) -> int:
        """Tokens of this answer so far."""
        return self.made - self.first_token


def begin(first_token: int, next_token: int, window: int) -> Delivery:
    """A new answer, or one taken up again at `next_token`."""
    return Delivery(first_token, next_token, next_token, next_token, window)


def made(delivery: Delivery, tokens: int) -> Delivery:
    """The engine produced `tokens` more."""
    return replace(delivery, made=delivery.made + tokens)


def sent(delivery: Delivery, tokens: int) -> Delivery:
    """`tokens` more left for the renter.

    Raises:
        ValueError: more than the window allows (a bug of the relay).
    """
    if tokens > delivery.sendable:
        raise ValueError(f"{tokens} tokens sent, {delivery.sendable} allowed")
    return replace(delivery, sent=delivery.sent + tokens)


def acknowledged(delivery: Delivery, tokens: int) -> Delivery:
    """The renter's receipt now covers `tokens` of the session."""
    return replace(delivery, acknowledged=max(delivery.acknowledged, tokens))


def cancelled(delivery: Delivery) -> Delivery:
    """The renter wants no more: what was made but not sent is dropped."""
    reason = delivery.finish_reason
    is_whole = delivery.made == delivery.sent and reason
    return replace(delivery, made=delivery.sent, finish_reason=reason if is_whole else "cancelled")


def finished(delivery: Delivery, reason: str) -> Delivery:
    """The engine is done; the first reason stands."""
    return replace(delivery, finish_reason=delivery.finish_reason or reason)
