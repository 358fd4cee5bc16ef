"""Clock: the only place that reads time, so that tests can hold it still."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What a process may know of time."""

    def unix_seconds(self) -> float:
        """Wall clock, seconds since 1970 UTC; may jump."""
        ...

    def monotonic_seconds(self) -> float:
        """Never goes back; origin arbitrary."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clocks."""

    def unix_seconds(self) -> float:
        """Wall clock."""
        return time.time()

    def monotonic_seconds(self) -> float:
        """CLOCK_MONOTONIC."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time that is passed on, never restarted."""

    at_seconds: float
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock | None = None) -> Deadline:
        """A deadline `seconds` from now."""
        chosen = clock or SystemClock()
        return cls(chosen.monotonic_seconds() + seconds, chosen)

    def remaining_seconds(self) -> float:
        """Seconds left, >= 0."""
        return max(0.0, self.at_seconds - self.clock.monotonic_seconds())
