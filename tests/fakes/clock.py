"""A clock that stands still until it is told to go on."""

from dataclasses import dataclass


@dataclass
class FakeClock:
    """nodeapp.service.clock.Clock."""

    now: float = 1_000_000.0

    def unix_seconds(self) -> float:
        return self.now

    def monotonic_seconds(self) -> float:
        return self.now
