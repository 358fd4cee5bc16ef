"""A revert told apart from other refusals, because callers decide on the contract's reason."""

from __future__ import annotations

from nodeapp.core.errors import Rejected


class Reverted(Rejected):
    """A contract refused a call; `reason` is its revert string, empty when it gave none."""

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(f"{function} reverted: {reason or 'no reason given'}")
        self.function = function
        self.reason = reason
