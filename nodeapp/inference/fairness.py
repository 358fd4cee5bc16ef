"""Turns between renters, by weighted deficit round-robin: for a sequence, and for prefill. Pure.

However many requests one renter sends, each renter who wants something gets TURN_TOKENS times its
weight in a round. Inside a renter requests are admitted in their order, and the shortest remaining
prefill goes first, with ageing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nodeapp.inference.job import Running, Waiting

AGEING_TOKENS = 32
"""A waiting prefill gains this much priority with every step."""
TURN_TOKENS = 512
"""What a renter of weight 1 may take in one turn: cells of new requests, tokens of prefill."""


@dataclass(slots=True)
class _Renter:
    waiting: deque[Waiting] = field(default_factory=deque)
    deficit: int = 0


class WaitingJobs:
    """Jobs that are not admitted yet."""

    def __init__(self) -> None:
        self._renters: dict[str, _Renter] = {}
        """Those with a waiting job, in the order of the round."""

    def __len__(self) -> int:
        return sum(len(renter.waiting) for renter in self._renters.values())

    @property
    def prefill_tokens(self) -> int:
        """Tokens of their prompts."""
        return sum(
            len(one.job.token_ids) for renter in self._renters.values() for one in renter.waiting
        )

    def add(self, waiting: Waiting) -> None:
        """The last one of its renter."""
        self._renters.setdefault(waiting.job.renter, _Renter()).waiting.append(waiting)

    def next(self, is_held: Callable[[Waiting], bool]) -> tuple[Waiting, int] | None:
        """The job whose renter's deficit is enough after the fewest rounds, and that number.

        Jobs that are held are passed over.
        """
        best: tuple[Waiting, int] | None = None
        for renter in self._renters.values():
            ready = (waiting for waiting in renter.waiting if not is_held(waiting))
            first = next(ready, None)
            if first is None:
                continue
            missing = first.job.reserved_tokens - renter.deficit
            rounds = max(0, -(-missing // (TURN_TOKENS * first.job.weight)))
            if best is None or rounds < best[1]:
                best = first, rounds
        return best

    def take(self, waiting: Waiting, rounds: int) -> None:
        """So many rounds passed, then this job was admitted."""
        for renter in self._renters.values():
            renter.deficit += rounds * TURN_TOKENS * renter.waiting[0].job.weight
        # Who was served goes to the end of the round.
        name = waiting.job.renter
        served = self._renters.pop(name)
        served.deficit -= waiting.job.reserved_tokens
        served.waiting.remove(waiting)
        if served.waiting:
            self._renters[name] = served

    def forget(self, job_id: int) -> None:
        """Drop a job if it is there."""
        for name, renter in list(self._renters.items()):
            for waiting in renter.waiting:
                if waiting.job.job_id == job_id:
                    renter.waiting.remove(waiting)
                    break
            if not renter.waiting:
                del self._renters[name]


class PrefillTurns:
    """Who may prefill how much of a batch; a turn goes on in the next batch."""

    def __init__(self) -> None:
        self._renters: deque[str] = deque()
        """The order of the round; the first one's turn it is."""
        self._left = 0

    def share(self, prefill: Iterable[Running], budget: int, step: int) -> dict[Running, int]:
        """Tokens for each job that gets some, in order, `budget` at most together.

        A turn ends when it is used up or its renter has nothing to prefill.
        """
        by_renter: dict[str, list[Running]] = {}
        for running in sorted(
            prefill, key=lambda one: one.remaining - (step - one.admitted_at) * AGEING_TOKENS
        ):
            by_renter.setdefault(running.job.renter, []).append(running)
        self._come_and_go(by_renter)
        taken: dict[Running, int] = {}
        while budget > 0 and by_renter:
            renter = self._renters[0]
            running = by_renter[renter][0]
            left = running.remaining - taken.get(running, 0)
            count = min(budget, left, self._left)
            taken[running] = taken.get(running, 0) + count
            budget -= count
            self._left -= count
            if count == left:
                by_renter[renter].pop(0)
            if not by_renter[renter]:
                del by_renter[renter]
                self._renters.popleft()
                self._left = 0
            elif self._left == 0:
                self._renters.rotate(-1)
            if self._left == 0:
                self._begin(by_renter)
        return taken

    def _come_and_go(self, by_renter: dict[str, list[Running]]) -> None:
        """Renters with prefill, in the order they came; the first one's turn goes on."""
        first = self._renters[0] if self._renters else None
        kept = [renter for renter in self._renters if renter in by_renter]
        new = [renter for renter in by_renter if renter not in self._renters]
        self._renters = deque([*kept, *new])
        if self._renters and (self._left <= 0 or self._renters[0] != first):
            self._begin(by_renter)

    def _begin(self, by_renter: dict[str, list[Running]]) -> None:
        if self._renters:
            self._left = TURN_TOKENS * by_renter[self._renters[0]][0].job.weight
