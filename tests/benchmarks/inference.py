"""The inference process beside llama.cpp's own servers, in one run, interleaved.

Every round asks every server the same in turn, so that what else the machine does hits all of
them; figures are medians of rounds, ratios medians of the ratios inside a round. CPU-seconds are
the server's own, wall is what the client sees.

Usage: python -m tests.benchmarks.inference [--out PATH] [--rounds N] [--threads N] [--only PART…]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeapp.devnet.world import free_port
from nodeapp.service.paths import default_cache_dir
from tests.benchmarks import rivals
from tests.benchmarks.copy_tasks import COPY_TASKS
from tests.benchmarks.inference_load import Load, Words, load
from tests.benchmarks.report import ROOT, Row, machine, median, row, table, write

SEED = 20261123
PARTS = ("servers", "prefix", "speculation", "overhead")
CONCURRENCY = (1, 4, 16)
PROMPT_WORDS = 100
NEW_TOKENS = 32
PREFIX_WORDS = 420
SHARED_TOKENS = 4
OVERHEAD_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Setting:
    """What every part needs."""

    directory: Path
    model: Path
    rounds: int
    threads: int
    words: Words

    def ours(self, *, name: str = "node", **changes: object) -> Any:
        """Our process with room for sixteen."""
        room = {"max_sequences": 16, "kv_tokens": 16 * rivals.SLOT_TOKENS, "threads": self.threads}
        return rivals.ours(self.directory, self.model, name=name, **(room | changes))

    def native(self, kind: str) -> Any:
        """The native server with room for sixteen."""
        return rivals.native(
            self.directory, self.model, threads=self.threads, parallel=16, kind=kind
        )


def compare_servers(setting: Setting) -> list[Row]:
    """Different prompts, 1, 4 and 16 at once."""
    seen: dict[tuple[str, int], list[Load]] = defaultdict(list)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(setting.ours()),
            stack.enter_context(setting.native("split")),
            stack.enter_context(
                rivals.binding(
                    setting.directory, setting.model, threads=setting.threads, port=free_port()
                )
            ),
        ]
        for server in servers:
            asyncio.run(load(server, [setting.words.text(20)], 4))
        for number in range(setting.rounds):
            for count in CONCURRENCY:
                prompts = [setting.words.text(PROMPT_WORDS) for _ in range(count)]
                turn = number % len(servers)
                for server in servers[turn:] + servers[:turn]:
                    seen[server.name, count].append(asyncio.run(load(server, prompts, NEW_TOKENS)))
                    _say(server.name, count, seen[server.name, count][-1])
    rows = []
    for count in CONCURRENCY:
        for name in ("node", "native-split", "binding"):
            rows += _figures(name, count, seen[name, count])
    for count in CONCURRENCY:
        mine, native, theirs = (seen[n, count] for n in ("node", "native-split", "binding"))
        goal = ">= 1.25" if count > 1 else ""
        what = f"{count} at once: tokens per CPU-second"
        rows.append(_ratio(f"{what}, by llama_cpp.server's", mine, theirs, _efficiency, goal))
        rows.append(_ratio(f"{what}, by native's", mine, native, _efficiency, ">= 1.0"))
        rows.append(
            _ratio(
                f"{count} at once: median first token, by native's", mine, native, _first, "<= 1.0"
            )
        )
    killed = sum(one.killed for (name, _), loads in seen.items() for one in loads if name == "node")
    rows.append(row("streams of ours that were killed", killed, "", "== 0"))
    return rows


def compare_prefix(setting: Setting) -> list[Row]:
    """One request warms a prefix, then 4 and 16 at once share it."""
    seen: dict[tuple[str, int], list[Load]] = defaultdict(list)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(setting.ours(name="node-prefix")),
            stack.enter_context(setting.native("split")),
            stack.enter_context(setting.native("unified")),
        ]
        for number in range(setting.rounds):
            for count in CONCURRENCY[1:]:
                prefix = setting.words.text(PREFIX_WORDS)
                tails = [setting.words.text(6) for _ in range(count)]
                turn = number % len(servers)
                for server in servers[turn:] + servers[:turn]:
                    asyncio.run(load(server, [f"{prefix} begin"], SHARED_TOKENS))
                    prompts = [f"{prefix} {tail}" for tail in tails]
                    found = asyncio.run(load(server, prompts, SHARED_TOKENS))
                    seen[server.name, count].append(found)
                    _say(f"{server.name} shared prefix", count, found)
    rows = []
    for count in CONCURRENCY[1:]:
        mine, split, unified = (
            seen[name, count] for name in ("node-prefix", "native-split", "native-unified")
        )
        for name, loads in (
            ("node", mine),
            ("native, default", split),
            ("native, unified", unified),
        ):
            figure = median(one.cpu_seconds for one in loads)
            rows.append(row(f"{count} sharing a warm prefix: {name}", figure, "CPU-s"))
        what = f"{count} sharing a warm prefix: CPU-seconds"
        rows.append(_ratio(f"{what} of native's default, by ours", split, mine, _cpu, ">= 10"))
        best = [min(pair, key=_cpu) for pair in zip(split, unified, strict=True)]
        rows.append(_ratio(f"{what} of ours, by native's best", mine, best, _cpu, "<= 1.0"))
    return rows


def compare_speculation(setting: Setting) -> list[Row]:
    """Copy-heavy work, one answer at a time, with guesses and without; all cores."""
    seen: dict[str, list[Load]] = defaultdict(list)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                setting.ours(name=f"speculation-{flag}", speculation=flag, threads=0)
            )
            for flag in ("true", "false")
        ]
        for task in COPY_TASKS:
            for server in servers:  # the prompts are in the cache after this
                asyncio.run(load(server, [task.prompt], 2))
        for _ in range(setting.rounds):
            for task in COPY_TASKS:
                for server in servers:
                    seen[server.name].append(asyncio.run(load(server, [task.prompt], task.tokens)))
                    _say(server.name, 1, seen[server.name][-1])
    guessed, plain = seen["speculation-true"], seen["speculation-false"]
    same = sum(
        one.answers[0].text == other.answers[0].text
        for one, other in zip(guessed, plain, strict=True)
    )
    return [
        row("copying, plain", median(map(_answering, plain)), "tokens/s"),
        row("copying, with guesses", median(map(_answering, guessed)), "tokens/s"),
        _ratio("copying: tokens/s with guesses, by plain", guessed, plain, _answering, ">= 1.5"),
        _ratio("copying: tokens per CPU-second, by plain", guessed, plain, _efficiency, ""),
        row("copying: answers that are the same", same / len(guessed), "", "== 1"),
    ]


def measure_overhead(setting: Setting) -> list[Row]:
    """CPU-seconds per token of the whole process beside llama.cpp's bare loop; no guesses."""
    ratios: list[float] = []
    bares: list[float] = []
    prompt = setting.words.text(10)
    environment = {**os.environ, **rivals.SPIN}
    words = [sys.executable, "-m", "tests.benchmarks.bare_llama", str(setting.model), prompt]
    words += [str(OVERHEAD_TOKENS), "--threads", "1", "--raw"]
    with setting.ours(name="node-plain", speculation="false", threads=1) as server:
        asyncio.run(load(server, [prompt], OVERHEAD_TOKENS))
        for _ in range(3 * setting.rounds):
            done = subprocess.run(
                words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
            )
            bare = float(json.loads(done.stdout)["cpu_s_per_token"])
            mine = asyncio.run(load(server, [f"{prompt} "], OVERHEAD_TOKENS))
            bares.append(bare)
            ratios.append(mine.cpu_seconds / mine.tokens / bare)
            _say("overhead", 1, mine)
    words[2] = "tests.benchmarks.engine_overhead"
    engine = [
        json.loads(
            subprocess.run(
                words[:6], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
            ).stdout
        )
        for _ in range(setting.rounds)
    ]
    own = median(one["plain_percent"] for one in engine)
    prints = [
        100 * (one["fingerprints_own_us"] - one["plain_own_us"]) / one["plain_decode_us"]
        for one in engine
    ]
    return [
        row("engine: CPU time besides llama_decode", own, "%", "<= 3"),
        row("fingerprints: further CPU time", median(prints), "%", "<= 1"),
        row("bare loop", median(bares) * 1000, "CPU-ms/token"),
        row("process with HTTP, over the bare loop", 100 * (median(ratios) - 1), "%"),
    ]


def _efficiency(one: Load) -> float:
    return one.tokens_per_cpu_second


def _first(one: Load) -> float:
    return one.first_seconds


def _cpu(one: Load) -> float:
    return one.cpu_seconds


def _answering(one: Load) -> float:
    return one.answering_speed


def _speed(one: Load) -> float:
    return one.tokens_per_second


def _figures(name: str, count: int, loads: Sequence[Load]) -> list[Row]:
    return [
        row(f"{count} at once: {name}", median(map(_efficiency, loads)), "tokens/CPU-s"),
        row(f"{count} at once: {name}, wall", median(map(_speed, loads)), "tokens/s"),
        row(f"{count} at once: {name}, median first token", median(map(_first, loads)), "s"),
    ]


def _ratio(
    name: str,
    mine: Sequence[Load],
    theirs: Sequence[Load],
    figure: Callable[[Load], float],
    goal: str,
) -> Row:
    ratios = [figure(one) / figure(other) for one, other in zip(mine, theirs, strict=True)]
    note = f"rounds {min(ratios):.2f} to {max(ratios):.2f}"
    return row(name, median(ratios), "x", goal, note)


def _say(name: str, count: int, one: Load) -> None:
    print(
        f"{name:>22} {count:>3}: {one.tokens_per_cpu_second:7.1f} tokens/CPU-s "
        f"{one.tokens_per_second:7.1f} tokens/s  first {one.first_seconds:6.2f} s",
        flush=True,
    )


def _plot(report: Path) -> None:
    words = [str(rivals.environment()), str(Path(__file__).with_name("inference_plot.py"))]
    subprocess.run([*words, str(report), str(report.with_suffix(".png"))], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "inference.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    rivals.environment()
    facts = machine() | {"seed": SEED, "threads_per_server": given.threads}
    model = default_cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parts = {
        "servers": compare_servers,
        "prefix": compare_prefix,
        "speculation": compare_speculation,
        "overhead": measure_overhead,
    }
    rows: list[Row] = []
    print(f"seed {SEED}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(Path(directory), model, given.rounds, given.threads, Words(SEED))
        for part in given.only:
            rows += parts[part](setting)
    facts["load_at_end"] = round(os.getloadavg()[0], 2)
    write(given.out, facts, rows)
    _plot(given.out)
    table("inference", rows)


if __name__ == "__main__":
    main()
