"""A renter for the benchmark: pays once, then asks one question per line of stdin.

Usage: demo_renter.py RENTER_TOML. A line is JSON {"system", "prompt", "max_tokens"}; the answer is
one line of JSON with the times of the renter's own events, in seconds since the question began.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from nodeapp.core.ids import ModelId
from nodeapp.renter import events
from nodeapp.renter.answer import Question
from nodeapp.renter.run import running_renter
from nodeapp.renter.settings import load_renter_settings
from nodeapp.service.logs import configure_logs
from nodeapp.service.settings import NodeSettings


class Stopwatch:
    """Keeps when each kind of event came first."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.seconds: dict[str, float] = {}
        self.batches = 0

    def start(self) -> None:
        self.begun, self.seconds, self.batches = time.perf_counter(), {}, 0

    def note(self, event: events.AnyEvent) -> None:
        self.batches += isinstance(event, events.TokensReceived)
        name = type(event).__name__
        self.seconds.setdefault(name, round(time.perf_counter() - self.begun, 4))


async def run(file: Path) -> None:
    watch = Stopwatch()
    settings = load_renter_settings(file)
    async with running_renter(settings, watch.note) as renter:
        watch.start()
        record = await renter.pay(ModelId(settings.model_id))
        say({"paid": watch.seconds})
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            turns = (("system", asked["system"]), ("user", asked["prompt"]))
            watch.start()
            cpu = time.process_time()
            ended = await renter.ask(record, Question(turns, asked["max_tokens"]))
            say(
                {
                    "seconds": watch.seconds,
                    "batches": watch.batches,
                    "tokens": ended.tokens,
                    "prompt_tokens": ended.prompt_tokens,
                    "tokens_per_s": ended.tokens_per_second,
                    "first_token_s": ended.first_token_seconds,
                    "cpu_s": round(time.process_time() - cpu, 4),
                }
            )
        await renter.close(record)


def say(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    configure_logs("renter", NodeSettings(log_level="warning"))
    asyncio.run(run(Path(sys.argv[1])))
