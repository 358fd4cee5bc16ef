"""How well an endpoint does, as plain values: latency, errors, rests, log ranges, budget.

Pure: time and chance are arguments. Seconds are of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LATENCY_WEIGHT = 0.2
ERROR_WEIGHT = 0.1
"""Of the newest request in the moving averages."""
ERROR_COST = 20.0
"""An endpoint that fails every tenth time costs as much as one three times as slow."""
PLACE_COST_SECONDS = 0.25
"""One place further down in the operator's list is worth this much latency."""
STICKY_SECONDS = 0.25
"""Who is asked now stays, unless another is better by more than this."""
FIRST_REST_SECONDS = 2.0
LONGEST_REST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Health:
    """Moving averages and the rest after failures; `failures` counts those in a row."""

    latency_seconds: float = 0.0
    error_rate: float = 0.0
    failures: int = 0
    rests_until: float = 0.0

    def is_resting(self, now: float) -> bool:
        """Whether it should be left alone now."""
        return self.rests_until > now

    def succeeded(self, latency_seconds: float) -> Health:
        """After an answer."""
        before = self.latency_seconds or latency_seconds
        return Health(
            latency_seconds=before + LATENCY_WEIGHT * (latency_seconds - before),
            error_rate=self.error_rate * (1 - ERROR_WEIGHT),
        )

    def failed(self, now: float, *, jitter: float, retry_after_seconds: float = 0.0) -> Health:
        """After no answer, or one that cannot be used.

        Args:
            now: monotonic seconds.
            jitter: 0 to 1, by chance: nodes that lost the same endpoint must not return at once.
            retry_after_seconds: what the endpoint asked for, 0 if nothing.
        """
        # Requests that were under way together fail together: that is one failure.
        failures = self.failures + (0 if self.is_resting(now) else 1)
        rest: float = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** min(failures - 1, 10))
        rest = max(rest * (0.5 + jitter / 2), min(retry_after_seconds, LONGEST_REST_SECONDS))
        return replace(
            self,
            error_rate=self.error_rate + ERROR_WEIGHT * (1 - self.error_rate),
            failures=failures,
            rests_until=max(self.rests_until, now + rest),
        )

    def cost(self, place: int, *, is_current: bool) -> float:
        """Seconds that speak against it; `place` is its position in the operator's list."""
        own = self.latency_seconds * (1 + ERROR_COST * self.error_rate)
        return own + place * PLACE_COST_SECONDS - (STICKY_SECONDS if is_current else 0.0)


FIRST_LOG_SPAN = 2000
LARGEST_LOG_SPAN = 20_000
"""Blocks of one log query: the first guess, and the most that is ever asked for."""
PROBE_AFTER = 64
"""Log queries of the largest known good size after which a larger one is tried again."""


@dataclass(frozen=True, slots=True)
class LogSpan:
    """How many blocks an endpoint takes in one log query, learnt from what it refused."""

    blocks: int = FIRST_LOG_SPAN
    ceiling: int = LARGEST_LOG_SPAN
    good: int = 0
    at_ceiling: int = 0

    def served(self, blocks: int) -> LogSpan:
        """After an answer for so many blocks; fewer than `self.blocks` teach nothing."""
        if blocks < self.blocks:
            return self
        larger = self.blocks + self.blocks // 4 + 1
        if self.blocks < self.ceiling:
            return replace(self, blocks=min(self.ceiling, larger), good=blocks)
        if self.at_ceiling < PROBE_AFTER or self.ceiling >= LARGEST_LOG_SPAN:
            return replace(self, good=blocks, at_ceiling=self.at_ceiling + 1)
        higher = min(LARGEST_LOG_SPAN, larger)
        return LogSpan(blocks=higher, ceiling=higher, good=blocks)

    def refused(self, blocks: int) -> LogSpan:
        """After it called so many blocks too many; what it took before is the ceiling then."""
        smaller = self.good if 0 < self.good < blocks else max(1, blocks // 2)
        ceiling = smaller if self.good == smaller else blocks
        return LogSpan(blocks=smaller, ceiling=ceiling)


@dataclass(slots=True)
class TokenBucket:
    """At most `per_second` requests a second, twice as many at once; 0 = no limit."""

    per_second: float
    _tokens: float = 0.0
    _at: float | None = None

    def wait_seconds(self, now: float, requests: int = 1) -> float:
        """Take `requests` tokens; how long to wait before sending, 0 when there were enough."""
        if self.per_second <= 0:
            return 0.0
        full = 2 * self.per_second
        before = full if self._at is None else self._tokens + (now - self._at) * self.per_second
        self._tokens = min(full, before) - requests
        self._at = now
        return max(0.0, -self._tokens / self.per_second)
