"""One clock for all answers of a node: what gathered leaves on the same beat.

Then one journal call, one wake of the libp2p thread and one write a connection carry the tokens
of everybody. A few answers alone do not wait for it: each sends as soon as its own last batch is
a period ago, which costs as many messages and no latency.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

FEW: Final = 4
"""So many answers at once keep their own pace."""


class Beat:
    """Of one event loop; shared by every relay of a process."""

    def __init__(self, period_seconds: float) -> None:
        """A period of 0 never waits."""
        self._period = period_seconds
        self._resting: list[asyncio.Future[None]] = []
        self._answers = 0

    @property
    def resting(self) -> int:
        """Answers that wait for the beat."""
        return len(self._resting)

    def enter(self) -> None:
        """An answer begins; `leave` is its end."""
        self._answers += 1

    def leave(self) -> None:
        """An answer has ended."""
        self._answers -= 1

    def rest(self, sent_at: float) -> asyncio.Future[None] | None:
        """What an answer waits for before it sends again; whoever cannot wait ends the future.

        Args:
            sent_at: loop time at which its last batch began to leave.
        Returns:
            None when it may send now.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_alone = self._answers <= FEW
        if self._period == 0 or (is_alone and now >= sent_at + self._period):
            return None
        future = loop.create_future()
        if is_alone:
            loop.call_at(sent_at + self._period, _end, future)
            return future
        if not self._resting:
            loop.call_at((math.floor(now / self._period) + 1) * self._period, self._strike)
        self._resting.append(future)
        return future

    def _strike(self) -> None:
        resting, self._resting = self._resting, []
        for future in resting:
            _end(future)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
