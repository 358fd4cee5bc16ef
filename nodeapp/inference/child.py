"""LimitedChild: one question at a time to a process that may be killed for its answer.

The process is limited_worker.py: no environment, little memory, no new processes. It is started
when first needed and again after each question it did not survive; a start has a time of its own,
so that a slow machine's does not eat the question's. Askers take turns (turns.py).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.inference.turns import Turns

_WORKER = Path(__file__).with_name("limited_worker.py")
_OVERHEAD_BYTES = 1024
START_SECONDS = 120.0
"""For the interpreter and its imports: 0.1 s, and a hundred times that when emulated and busy."""


class Reply(msgspec.Struct, frozen=True):
    """What the child answers: a text, or what is wrong with the question."""

    text: str = ""
    error: str = ""


class LimitedChild:
    """A child for one kind of question.

    `what` names the work in errors, `module` is what the child imports before its first question;
    an answer over `max_answer_bytes` is not read.
    """

    def __init__(self, what: str, *, module: str, max_answer_bytes: int) -> None:
        self._what = what
        self._module = module
        self._max_answer_bytes = max_answer_bytes + _OVERHEAD_BYTES
        self._child: asyncio.subprocess.Process | None = None
        self._turns = Turns(what)
        """Guard the child's pipes: one question, then its answer."""

    async def ask(self, question: bytes, *, deadline_seconds: float, asker: str = "") -> Reply:
        """Send a JSON question; `asker` is whose turn it counts as.

        Raises:
            InvalidRequest: it took longer than the deadline, which counts from its turn, with the
                child up.
            Busy: too many others ask, see turns.py.
            Unavailable: the child could not be started, not in time, or ended by itself.
        """
        async with self._turns.turn(asker):
            return await self._ask(question, deadline_seconds)

    async def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            child.kill()
        await child.wait()

    async def _ask(self, question: bytes, deadline_seconds: float) -> Reply:
        is_answered = False
        try:
            await self._revive()
            try:
                async with asyncio.timeout(deadline_seconds):
                    reply = await self._exchange(question)
            except TimeoutError as error:
                raise InvalidRequest(
                    f"{self._what} did not end inside {deadline_seconds:g} s"
                ) from error
            is_answered = True
            return reply
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unavailable(f"{self._what} process ended") from error
        finally:
            if not is_answered:
                await self.close()

    async def _revive(self) -> None:
        """Start a child when there is none or it was killed since the last question."""
        if self._child is not None and self._child.returncode is not None:
            await self.close()
        if self._child is not None:
            return
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(_WORKER),
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={},
            limit=1 << 16,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._answer()  # the greeting
        except TimeoutError as error:
            raise Unavailable(
                f"{self._what} process did not start inside {START_SECONDS:g} s"
            ) from error

    async def _exchange(self, question: bytes) -> Reply:
        target = self._child.stdin if self._child is not None else None
        if target is None:
            raise Unavailable(f"{self._what} process has no pipe")
        target.write(len(question).to_bytes(4, "big") + question)
        await target.drain()
        return await self._answer()

    async def _answer(self) -> Reply:
        source = self._child.stdout if self._child is not None else None
        if source is None:
            raise Unavailable(f"{self._what} process has no pipe")
        length = int.from_bytes(await source.readexactly(4), "big")
        if length > self._max_answer_bytes:
            raise Unavailable(f"{self._what} process answered {length} bytes")
        return msgspec.json.decode(await source.readexactly(length), type=Reply)
