"""Turns: one at a time; whoever waits is served in a round of askers, each in its own order.

Bounded in three ways, each refused with Busy: how many wait, how many of one asker do, how long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nodeapp.core.errors import Busy

MAX_WAITING = 512
MAX_WAITING_OF_ONE = 256
WAIT_SECONDS = 20.0
_RETRY_SECONDS = 2.0


class Turns:
    """`what` names the work in errors."""

    def __init__(self, what: str, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._what = what
        self._wait_seconds = wait_seconds
        self._is_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By asker; the first asker is served next and goes to the end."""

    @asynccontextmanager
    async def turn(self, asker: str) -> AsyncIterator[None]:
        """Wait for a turn and have it.

        Raises:
            Busy: too many wait, or it took too long.
        """
        if self._is_taken:
            await self._wait(asker)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, asker: str) -> None:
        own = len(self._waiting.get(asker, ()))
        waiting = sum(map(len, self._waiting.values()))
        if own >= MAX_WAITING_OF_ONE or waiting >= MAX_WAITING:
            raise self._busy(f"{waiting} wait, {own} of them from here")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asker, deque()).append(turn)
        is_mine = False
        try:
            async with asyncio.timeout(self._wait_seconds):
                await turn
            is_mine = True
        except TimeoutError as error:
            raise self._busy(f"no turn inside {self._wait_seconds:g} s") from error
        finally:
            if not is_mine:
                self._leave(asker, turn)

    def _leave(self, asker: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._pass_on()  # it came at the very moment of leaving
            return
        waiting = self._waiting.get(asker, deque())
        if turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[asker]

    def _pass_on(self) -> None:
        """The turn stays taken while it goes from hand to hand: nobody slips in between."""
        while self._waiting:
            asker = next(iter(self._waiting))
            waiting = self._waiting.pop(asker)
            turn = waiting.popleft()
            if waiting:
                self._waiting[asker] = waiting
            if not turn.done():  # else its asker is just leaving
                turn.set_result(None)
                return
        self._is_taken = False

    def _busy(self, why: str) -> Busy:
        return Busy(f"{self._what}: {why}", retry_after_seconds=_RETRY_SECONDS)
