"""Which of several equal engines a request goes to: where its prefix is cached, else least load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HOME_MARGIN = 0.5
"""A home is left when it is by more than this share of its slots busier than the least loaded."""


@dataclass(frozen=True, slots=True)
class Load:
    """One engine: requests open on it, those it answers at once, those it was ever given.

    `slots` 0: it takes nothing now (down, loading, draining, in quarantine).
    """

    open_requests: int
    slots: int
    given: int = 0

    @property
    def share(self) -> float:
        """Of its slots in use; over 1 when requests wait. Only where there are slots."""
        return self.open_requests / self.slots


def preference(loads: Sequence[Load], home: int | None = None) -> tuple[int, ...]:
    """Positions of the engines to ask, the best one first, >= 1 of them when there are any.

    Args:
        loads: of all engines.
        home: where an earlier request with the same prefix went; None: it has none.

    Returns:
        The home while it is not much busier than another and nobody idle is passed over for a
        queue, then by load. When none takes anything, all: each says itself what it waits for.
    """
    usable = [place for place, load in enumerate(loads) if load.slots > 0]
    usable.sort(key=lambda place: (loads[place].share, loads[place].given, place))
    if not usable:
        return tuple(range(len(loads)))
    if home in usable and _is_bearable(loads[home], loads[usable[0]]):
        usable.remove(home)
        usable.insert(0, home)
    return tuple(usable)


def _is_bearable(home: Load, least: Load) -> bool:
    return home.share - least.share <= HOME_MARGIN and (home.share < 1 or least.share >= 1)
