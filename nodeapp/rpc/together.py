"""Send what piles up while a call is under way as one call: no waiting, fewer calls and fsyncs.

The first caller sends its item at once. Who comes meanwhile waits for the turn; the one that gets
it sends everything that waits then, and the others find their answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nodeapp.core.errors import NodeError

Item = TypeVar("Item")
Send = Callable[[Sequence[Item]], Awaitable[Sequence[NodeError | None]]]


@dataclass(eq=False)
class _Waiting(Generic[Item]):
    item: Item
    done: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Together(Generic[Item]):
    """Items must be safe to send again: whoever sent them may be cancelled without an answer."""

    def __init__(self, send: Send[Item], *, key: Callable[[Item], object], max_items: int) -> None:
        """`key`: two items of one key never go into the same call."""
        self._send = send
        self._key = key
        self._max_items = max_items
        self._waiting: list[_Waiting[Item]] = []
        self._turn = asyncio.Lock()  # guards: one call at a time

    async def add(self, item: Item) -> None:
        """Have one item sent.

        Raises:
            NodeError: what the call said of this item, or why it could not be made.
        """
        mine = _Waiting(item)
        self._waiting.append(mine)
        try:
            async with self._turn:
                while not mine.done.done():
                    await self._call(self._take())
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
            if mine.done.done() and not mine.done.cancelled():
                mine.done.exception()  # seen, also when the caller is cancelled
        await mine.done

    def _take(self) -> list[_Waiting[Item]]:
        taken: dict[object, _Waiting[Item]] = {}
        for waiting in self._waiting:
            if len(taken) < self._max_items:
                taken.setdefault(self._key(waiting.item), waiting)
        return list(taken.values())

    async def _call(self, batch: list[_Waiting[Item]]) -> None:
        """They stay in the queue until answered: a cancelled sender leaves them to the next one."""
        try:
            errors = await self._send([waiting.item for waiting in batch])
        except NodeError as error:
            errors = [error] * len(batch)
        for waiting, failure in zip(batch, errors, strict=True):
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            if waiting.done.done():
                continue
            if failure is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(failure)
