"""Conversation -> prompt text by the model's own template, rendered in a limited child process.

A renter's text must never become a control token. Where it holds the text of one
(`<|im_start|>`), a mark is put after that text's first character; the rendered prompt is cut at
the marks and the parts are tokenised one by one, so the control text is never whole. Text
without control tokens is untouched and tokenises exactly as the template's author meant.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.service.logs import get_logger
from nodeapp.wire.ipc_inference import ChatMessage

MARK = "\ufdd0"
"""A Unicode noncharacter: reserved for use inside a program, never text."""
MAX_PROMPT_CHARACTERS = 4 << 20
DEADLINE_SECONDS = 5.0
_WORKER = Path(__file__).with_name("chat_worker.py")
_log = get_logger(__name__)


class _Reply(msgspec.Struct, frozen=True):
    text: str = ""
    error: str = ""


class ControlText:
    """The texts of a vocabulary's control tokens, and how to defuse them in a renter's text."""

    def __init__(self, texts: Sequence[str]) -> None:
        longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def defuse(self, text: str) -> str:
        """Break every control text; marks that came with the text are replaced by U+FFFD."""
        clean = text.replace(MARK, "\ufffd")
        return self._pattern.sub(lambda hit: f"{hit[0][0]}{MARK}{hit[0][1:]}", clean)


class ChatRenderer:
    """One child, started when first needed and again after each one that had to be killed."""

    def __init__(
        self, template: str, *, bos_text: str, eos_text: str, control: ControlText
    ) -> None:
        self._template = template
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._control = control
        self._child: asyncio.subprocess.Process | None = None
        self._one_at_a_time = asyncio.Lock()
        """Guards the child's pipes: one question, then its answer."""

    async def render(
        self, messages: Sequence[ChatMessage], *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> tuple[str, ...]:
        """The prompt as parts to be tokenised one by one, control tokens parsed in each.

        Raises:
            InvalidRequest: no template, refused by it, over its bounds or its deadline.
            Unavailable: the child could not be started or was killed from outside.
        """
        if not self._template:
            raise InvalidRequest("this model has no chat template: send prompt_token_ids")
        values = {
            "messages": [
                {"role": message.role, "content": self._control.defuse(message.content)}
                for message in messages
            ],
            "add_generation_prompt": True,
            **self._tokens,
        }
        question = msgspec.json.encode(
            {
                "template": self._template,
                "values": values,
                "max_characters": MAX_PROMPT_CHARACTERS,
            }
        )
        async with self._one_at_a_time:
            reply = await self._ask(question, deadline_seconds)
        if reply.error:
            raise InvalidRequest(f"chat template: {reply.error}")
        return tuple(part for part in reply.text.split(MARK) if part)

    async def warm_up(self) -> None:
        """Start the child and compile the template, so that the first renter does not wait.

        Raises:
            Unavailable: the child could not be started.
        """
        if not self._template:
            return
        try:
            await self.render((ChatMessage(role="user", content="hello"),))
        except InvalidRequest as refusal:
            # Its affair: what a renter sends may please the template better.
            _log.warning("chat template refuses a greeting", error=refusal.message)

    async def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            child.kill()
        await child.wait()

    async def _ask(self, question: bytes, deadline_seconds: float) -> _Reply:
        is_answered = False
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._revive()
                reply = await self._exchange(question)
            is_answered = True
            return reply
        except TimeoutError as error:
            raise InvalidRequest(
                f"chat template did not end inside {deadline_seconds:g} s"
            ) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unavailable("chat template process ended") from error
        finally:
            if not is_answered:
                await self.close()

    async def _revive(self) -> None:
        """Start a child when there is none or it was killed since the last question."""
        if self._child is not None and self._child.returncode is not None:
            await self.close()
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_WORKER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={},
                limit=1 << 16,
            )

    async def _exchange(self, question: bytes) -> _Reply:
        child = self._child
        source, target = (child.stdout, child.stdin) if child is not None else (None, None)
        if source is None or target is None:
            raise Unavailable("chat template process has no pipes")
        target.write(len(question).to_bytes(4, "big") + question)
        await target.drain()
        length = int.from_bytes(await source.readexactly(4), "big")
        if length > MAX_PROMPT_CHARACTERS * 6 + 1024:
            raise Unavailable(f"chat template process answered {length} bytes")
        return msgspec.json.decode(await source.readexactly(length), type=_Reply)
