"""What a benchmark asks of an inference server, and what the answers cost on both sides."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.rivals import Server


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as the client saw it; seconds from its start."""

    text: str
    tokens: int
    first_seconds: float
    seconds: float
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Some requests at once, on one server."""

    answers: tuple[Answer, ...]
    cpu_seconds: float
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / self.cpu_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def answering_speed(self) -> float:
        """Tokens per second of one answer, after its first."""
        (answer,) = self.answers
        return (answer.tokens - 1) / (answer.seconds - answer.first_seconds)

    @property
    def first_seconds(self) -> float:
        return statistics.median(answer.first_seconds for answer in self.answers)

    @property
    def killed(self) -> int:
        return sum(not answer.is_whole for answer in self.answers)


class Words:
    """Prompts that no cache knows; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # prompts, not secrets
        self._list = [
            "river",
            "house",
            "green",
            "seven",
            "market",
            "window",
            "people",
            "story",
            "night",
            "number",
            "water",
            "light",
            "paper",
            "garden",
            "road",
            "stone",
            "winter",
            "letter",
            "music",
            "morning",
            "bridge",
            "forest",
            "engine",
            "silver",
            "table",
        ]

    def text(self, count: int) -> str:
        return " ".join(self._random.choice(self._list) for _ in range(count))


async def ask(server: Server, prompt: str, tokens: int) -> Answer:
    """One streamed completion, greedy."""
    body: dict[str, object] = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "model": server.model,
    }
    if server.name != "binding":
        body["stream_options"] = {"include_usage": True}
    began = time.perf_counter()
    text, pieces, counted, first = "", 0, None, 0.0
    is_whole = False
    async with (
        server.session() as session,
        session.post(f"{server.url}/v1/completions", json=body) as reply,
    ):
        if reply.status != 200:
            raise RuntimeError(f"{server.name}: {reply.status} {await reply.text()}")
        async for line in reply.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            event: dict[str, Any] = json.loads(line[6:])
            counted = (event.get("usage") or {}).get("completion_tokens", counted)
            for choice in event.get("choices", ()):
                if choice.get("text"):
                    first = first or time.perf_counter() - began
                    text += choice["text"]
                    pieces += 1
                is_whole |= choice.get("finish_reason") is not None
    seconds = time.perf_counter() - began
    return Answer(text, counted or pieces, first or seconds, seconds, is_whole)


async def load(server: Server, prompts: Sequence[str], tokens: int) -> Load:
    """All prompts at once."""
    cpu, began = server.cpu_seconds(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(server, prompt, tokens)) for prompt in prompts]
    seconds = time.perf_counter() - began
    answers = tuple(task.result() for task in asked)
    return Load(answers, server.cpu_seconds() - cpu, seconds)
