"""Who is on the line: every conversation, and the one that holds each session.

A renter whose connection was lost comes back long before its old stream is known to be dead. The
newest conversation of a session wins: the older one is ended, and has ended, before the newer one
goes on; so never two of them write one token stream or end each other's request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import JobId

END_SECONDS = 10.0


class Line(Protocol):
    """A conversation, as far as it is known here."""

    def let_go(self) -> None:
        """End after the answer that is under way, or now."""
        ...

    def hang_up(self) -> None:
        """End now."""
        ...


class LiveConversations:
    """Owned by the event loop."""

    def __init__(self) -> None:
        self._ended: dict[Line, asyncio.Event] = {}
        self._holders: dict[tuple[int, JobId], Line] = {}
        self._is_draining = False

    def __len__(self) -> int:
        return len(self._ended)

    @contextmanager
    def line(self, line: Line) -> Iterator[None]:
        """Count a conversation while it lives.

        Raises:
            Unavailable: the host is stopping.
        """
        if self._is_draining:
            raise Unavailable("host is stopping", retry_after_seconds=2)
        self._ended[line] = asyncio.Event()
        try:
            yield
        finally:
            self._ended.pop(line).set()
            for held in [held for held, holder in self._holders.items() if holder is line]:
                del self._holders[held]

    async def take(self, job_id: JobId, line: Line, *, chain_id: int = 0) -> bool:
        """Give the session to this conversation; returns whether another one had to end for it.

        Raises:
            Unavailable: the older one does not end.
        """
        older = self._holders.get((chain_id, job_id))
        self._holders[chain_id, job_id] = line
        if older is None or older is line:
            return False
        older.hang_up()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._ended[older].wait()
        except TimeoutError as error:
            raise Unavailable(f"an older stream of session {job_id} does not end") from error
        return True

    async def drain(self) -> None:
        """Let answers that are under way finish; who is silent is let go at once.

        Whoever waits for it may give up; new conversations are refused until `resume`.
        """
        self._is_draining = True
        ends = list(self._ended.items())
        for line, _ended in ends:
            line.let_go()
        for _line, ended in ends:
            await ended.wait()

    def resume(self) -> None:
        """Take conversations again after a drain that nothing followed."""
        self._is_draining = False
