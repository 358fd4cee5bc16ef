"""Send what piles up while a call is under way as one call: fewer calls and fsyncs, one wake each.

The first caller leads: it lets whoever is woken in the same turn of the loop add an item, sends
everything that waits, then hands the lead to the first that came meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from nodeapp.core.errors import NodeError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Send = Callable[[Sequence[Item]], Awaitable[Sequence[Answer | NodeError]]]


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    woken: asyncio.Future[None] = field(default_factory=asyncio.Future)
    """Answered, or asked to lead."""
    is_answered: bool = False
    answer: Answer | NodeError | None = None


class Together(Generic[Item, Answer]):
    """Items must be safe to send again: whoever sent them may be cancelled without an answer."""

    def __init__(
        self, send: Send[Item, Answer], *, key: Callable[[Item], object], max_items: int
    ) -> None:
        """Prepare.

        Args:
            send: makes the call; an answer or a failure for each item, in their order.
            key: two items of one key never go into the same call.
            max_items: of one call.
        """
        self._send = send
        self._key = key
        self._max_items = max_items
        self._waiting: list[_Waiting[Item, Answer]] = []
        self._leader: _Waiting[Item, Answer] | None = None

    async def add(self, item: Item) -> Answer:
        """Have one item sent.

        Raises:
            NodeError: what the call said of this item, or why it could not be made.
        """
        mine: _Waiting[Item, Answer] = _Waiting(item)
        self._waiting.append(mine)
        try:
            while not mine.is_answered:
                if self._leader is None:
                    self._leader = mine
                    await asyncio.sleep(0)
                if self._leader is mine:
                    await self._call(self._take())
                else:
                    await mine.woken
        finally:
            if not mine.is_answered:
                self._waiting.remove(mine)
            if self._leader is mine:
                self._hand_over()
        if isinstance(mine.answer, NodeError):
            raise mine.answer
        return cast("Answer", mine.answer)

    def _hand_over(self) -> None:
        self._leader = self._waiting[0] if self._waiting else None
        if self._leader is not None:
            _wake(self._leader)

    def _take(self) -> list[_Waiting[Item, Answer]]:
        taken: dict[object, _Waiting[Item, Answer]] = {}
        for waiting in self._waiting:
            if len(taken) < self._max_items:
                taken.setdefault(self._key(waiting.item), waiting)
        return list(taken.values())

    async def _call(self, batch: list[_Waiting[Item, Answer]]) -> None:
        """They stay in the queue until answered: a cancelled leader leaves them to the next one."""
        answers: Sequence[Answer | NodeError]
        try:
            answers = await self._send([waiting.item for waiting in batch])
        except NodeError as error:
            answers = [error] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                waiting.answer, waiting.is_answered = answer, True
                _wake(waiting)


def _wake(waiting: _Waiting[Item, Answer]) -> None:
    if not waiting.woken.done():
        waiting.woken.set_result(None)
