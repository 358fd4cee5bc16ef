"""Which snapshots are kept: the newest ones, and one a day and a week further back. Pure.

Rules of this file: times are unix seconds, days and weeks are UTC's; the newest is always kept.
Which one is newest is told by the order of making, never by times alone: a clock can be wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS
_MONDAY_SECONDS = 4 * DAY_SECONDS
"""The first Monday of unix time, 1970-01-05."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Retention:
    """How many of each: `last` >= 1, `daily` and `weekly` >= 0 periods that have a snapshot."""

    last: int
    daily: int = 0
    weekly: int = 0


def in_order(made: Mapping[Name, float], now: float) -> list[tuple[Name, float]]:
    """Oldest first, where only times tell.

    What claims to be made later than now was made while the clock was wrong: it counts as older
    than all others, or else it would drive out what is made from now on.
    """
    return sorted(made.items(), key=lambda one: (one[1] <= now, one[1]))


def kept(oldest_first: Sequence[tuple[Name, float]], rule: Retention) -> frozenset[Name]:
    """The names that stay, of all with the times they were made, in the order of making.

    The newest snapshot of a period stands for it. Periods without one are not counted: a node
    that was off for a month loses nothing of what it had.
    """
    made = dict(oldest_first)
    newest_first = list(reversed(made))
    chosen = set(newest_first[: max(1, rule.last)])
    for length, start, count in (
        (DAY_SECONDS, 0, rule.daily),
        (WEEK_SECONDS, _MONDAY_SECONDS, rule.weekly),
    ):
        periods: dict[int, Name] = {}
        for name in newest_first:
            periods.setdefault(int((made[name] - start) // length), name)
        chosen.update(list(periods.values())[:count])
    return frozenset(chosen)


def age_text(seconds: float) -> str:
    """A time span for people: "40 s", "12 min", "3 h", "2 d"."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{max(0, int(seconds)) // length} {unit}"
    return f"{int(seconds) // DAY_SECONDS} d"
