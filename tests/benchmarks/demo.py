"""Figures of the main job: set-up, readiness, first token, speed against the bare engine, memory.

Usage: python -m tests.benchmarks.demo [--out FILE] [--rounds N] [--tokens N] [--cold]
Node and bare engine take turns (A B A B …) with the same prompt, threads and environment; each
round asks something new, so that no prefix cache helps. Claims are kept out of the rounds by a
proof interval longer than all of them. A turn waits for a calm machine, and turns in which other
processes took processor time are left out as long as calm ones remain. `--cold` also sets up into
an empty cache (minutes).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from nodeapp.cli.devnet import world_options
from nodeapp.devnet.world import World, running_world
from nodeapp.inference.loading import decode_cores, physical_cores
from nodeapp.service.config import load_settings
from nodeapp.service.supervisord import PROGRAMS
from nodeapp.service.tree import NodeTree, start_tree
from tests.benchmarks import report
from tests.benchmarks.processes import cpu_seconds, cpu_spent, machine_cpu_seconds, memory_of
from tests.benchmarks.report import ROOT, Row, median, row

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
IDLE_SECONDS = 10.0
PATIENCE_SECONDS = 20.0
CALM_PERCENT = 10.0
CALM_CORES = 0.25
ANSWER_SECONDS = 300.0
SPIN = "1000"
"""With libgomp's own default the bare engine crawls on a machine that does anything else."""
COLD_ROWS = ("set-up, cold", "set-up, cold, llama.cpp wheel cached")


@dataclass(frozen=True, slots=True)
class Round:
    """Answers of the bare engine and of the node to the same question."""

    bare: dict[str, Any]
    """On all cores, which it has to itself."""
    bare_same: dict[str, Any]
    """With as many threads as the node decodes with."""
    node: dict[str, Any]
    cpu: dict[str, float]
    engine_first_s: float
    others: float
    """Cores that processes outside the measurement used, the worst of the turns."""


def plain_environment(**extra: str) -> dict[str, str]:
    """Ours, without what the calling make left in it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return {**kept, **extra}


# -- set-up --------------------------------------------------------------------------------------


def set_up_rows(*, cold: bool, out: Path) -> list[Row]:
    rows = [row("set-up, everything there", median(_timed_setup() for _ in range(3)), "s", "<= 3")]
    seconds = median(_to_step_two() for _ in range(3))
    rows.append(row("make demo again, to step 2", seconds, "s", "<= 3"))
    return rows + (_cold_rows() if cold else report.kept_rows(out, COLD_ROWS))


def _timed_setup(**environment: str) -> float:
    begun = time.perf_counter()
    words = ["python3", "-m", "appliance.setup"]
    subprocess.run(words, cwd=ROOT, env=plain_environment(**environment), check=True)
    return time.perf_counter() - begun


def _to_step_two() -> float:
    begun = time.perf_counter()
    with subprocess.Popen(
        ["make", "--silent", "demo"],
        cwd=ROOT,
        env=plain_environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            for line in demo.stdout:
                if line.startswith(b"2/8"):
                    return time.perf_counter() - begun
            raise RuntimeError("make demo ended before its second step")
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGINT)
            demo.communicate(timeout=30)


def _cold_rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="fabstir-cold-") as scratch:
        places = {"FABSTIR_CACHE": f"{scratch}/cache", "FABSTIR_VENV": f"{scratch}/venv"}
        whole = _timed_setup(**places)
        Path(f"{scratch}/venv").rename(f"{scratch}/first-venv")
        again = _timed_setup(**places)
    note = "downloads included"
    return [row(COLD_ROWS[0], whole, "s", "", note), row(COLD_ROWS[1], again, "s", "", note)]


# -- the tree ------------------------------------------------------------------------------------


@asynccontextmanager
async def running_tree(directory: Path) -> AsyncIterator[tuple[World, NodeTree, float]]:
    """World and tree; the seconds are start to every process ready."""
    async with running_world(world_options(directory, chain_id=31337, rpc_port=0)) as world:
        # No claim is due while turns are measured: see `renter`.
        extra = world.node_file.with_name(world.node_file.name + ".d") / "bench.toml"
        extra.parent.mkdir(exist_ok=True)
        extra.write_text("[chain]\nmax_proof_interval_tokens = 1920\n", "utf-8")
        begun = time.perf_counter()
        tree = await start_tree(load_settings(world.node_file))
        try:
            await tree.wait_ready(deadline_seconds=120)
            yield world, tree, time.perf_counter() - begun
        finally:
            await tree.stop()


async def idle_rows(tree: NodeTree, model: Path) -> list[Row]:
    """Memory and processor use of the tree when nobody asks anything."""
    before, begun = cpu_seconds(tree.pids()), time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    spent = cpu_spent(before, cpu_seconds(tree.pids()))
    seconds = time.perf_counter() - begun
    memory = [memory_of(pid, model) for pid in tree.pids()]
    how = "PSS of all processes of the tree, the mapped GGUF's pages left out by path"
    rows = [
        row("idle memory without the model", sum(one.own for one in memory), "MiB", "", how),
        row("idle memory, RSS", sum(one.rss for one in memory), "MiB", "", "model included"),
        row("mapped model resident", sum(one.model for one in memory), "MiB"),
        row("idle processor use", 100 * sum(spent.values()) / seconds, "% of a core"),
    ]
    for one in sorted(memory, key=lambda found: -found.own):
        share = 100 * spent.get(one.name, 0.0) / seconds
        note = f"RSS {one.rss:.0f} MiB, {share:.1f} % of a core"
        rows.append(row(f"idle memory of {one.name}", one.own, "MiB", "", note))
    return rows


# -- node against bare engine --------------------------------------------------------------------


@asynccontextmanager
async def renter(world: World) -> AsyncIterator[asyncio.subprocess.Process]:
    """The renter's process, already paid up; ends with the block."""
    text = world.renter_file.read_text("utf-8")
    if "proof_interval_tokens" not in text:
        world.renter_file.write_text(text + "proof_interval_tokens = 1900\n", "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.demo_renter", str(world.renter_file)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        await _told(process)
        yield process
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(30):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _told(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(ANSWER_SECONDS):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError("the renter ended, see its words above")
    told: dict[str, Any] = json.loads(line)
    return told


async def one_round(
    number: int, tokens: int, model: Path, tree: NodeTree, process: asyncio.subprocess.Process
) -> Round:
    system = f"{number}. You are a storyteller."
    await calm_machine()
    bare, bare_others = await _bare(model, system, tokens, physical_cores())
    await calm_machine()
    same, same_others = await _bare(model, system, tokens, decode_cores())
    await calm_machine()
    earlier = await _engine_first(tree)
    before = cpu_seconds([*tree.pids(), process.pid])
    busy, begun = machine_cpu_seconds(), time.perf_counter()
    assert process.stdin is not None
    question = {"system": system, "prompt": PROMPT, "max_tokens": tokens}
    process.stdin.write(json.dumps(question).encode() + b"\n")
    node = await _told(process)
    wall, busy = time.perf_counter() - begun, machine_cpu_seconds() - busy
    cpu = cpu_spent(before, cpu_seconds([*tree.pids(), process.pid]))
    others = max(bare_others, same_others, (busy - sum(cpu.values())) / wall)
    return Round(bare, same, node, cpu, await _engine_first(tree) - earlier, others)


async def calm_machine() -> None:
    """Wait until nobody computes, at most PATIENCE_SECONDS."""
    end = time.perf_counter() + PATIENCE_SECONDS
    while time.perf_counter() < end:
        if await asyncio.to_thread(psutil.cpu_percent, 1.0) < CALM_PERCENT:
            return


async def _bare(
    model: Path, system: str, tokens: int, threads: int
) -> tuple[dict[str, Any], float]:
    """What it printed, and the cores that others used meanwhile."""
    prompt = (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )
    busy, begun, own = machine_cpu_seconds(), time.perf_counter(), children_cpu_seconds()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests/benchmarks/bare_llama.py")),
        *(str(model), prompt, str(tokens), "--raw", "--threads", str(threads)),
        stdout=asyncio.subprocess.PIPE,
        env=plain_environment(**{"GOMP_SPINCOUNT": SPIN, **PROGRAMS["inference"].environment}),
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the bare engine ended with code {process.returncode}")
    wall, busy = time.perf_counter() - begun, machine_cpu_seconds() - busy
    facts: dict[str, Any] = json.loads(output)
    return facts, (busy - children_cpu_seconds() + own) / wall


def children_cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _engine_first(tree: NodeTree) -> float:
    """Sum of the engine's own times from acceptance to first token."""
    connector = aiohttp.UnixConnector(path=str(tree.paths.socket("inference")))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://inference/metrics") as response,
    ):
        text = await response.text()
    name = "fabstir_inference_time_to_first_token_seconds_sum"
    values = [line.split()[1] for line in text.splitlines() if line.startswith(name)]
    return float(values[0]) if values else 0.0


def speed_rows(all_rounds: list[Round]) -> list[Row]:
    rounds = [one for one in all_rounds if one.others <= CALM_CORES] or all_rounds

    def middle(of: Any) -> float:
        return median(of(one) for one in rounds)

    def at(event: str) -> float:
        return middle(lambda one: one.node["seconds"][event])

    ratio = middle(lambda one: one.node["tokens_per_s"] / one.bare["tokens_per_s"])
    same = middle(lambda one: one.node["tokens_per_s"] / one.bare_same["tokens_per_s"])
    connected, started, first = at("Connected"), at("AnswerStarted"), at("TokensReceived")
    engine, bare_first = middle(lambda one: one.engine_first_s), middle(_bare_first)
    disturbed = middle(lambda one: one.others)
    shared = (
        f"median of {len(rounds)} of {len(all_rounds)} turns, {disturbed:.2f} cores used by others,"
        f" {rounds[0].node['prompt_tokens']} prompt tokens"
    )
    best = max(one.node["tokens_per_s"] for one in all_rounds)
    bare_best = max(one.bare["tokens_per_s"] for one in all_rounds)
    rows = [
        row("tokens/s, node to bare engine", ratio, "", ">= 0.9", shared),
        row("tokens/s, node to bare engine, same decode threads", same, "", ">= 0.9", shared),
        row("tokens/s, best node turn to best bare turn", best / bare_best, "", ">= 0.9"),
        row("tokens/s, node", middle(lambda one: one.node["tokens_per_s"]), "tokens/s"),
        row("tokens/s, bare engine", middle(lambda one: one.bare["tokens_per_s"]), "tokens/s"),
        row("first token, bare engine", bare_first, "s", "", "prefill and first choice"),
        row("first token, node, from connect", first, "s", "", shared),
        row("first token, node, from the question sent", first - connected, "s"),
        row("first token, node beyond bare", first - connected - bare_first, "s"),
        row("  connect, login, session", connected, "s"),
        row("  authorise, journalled", started - connected, "s"),
        row("  engine: queue, prefill, first choice", engine, "s"),
        row("  template, relay, journal, renter's disk", first - started - engine, "s"),
        row("CPU, bare engine", middle(lambda one: one.bare["cpu_s_per_token"]), "s/token"),
        row("CPU, node and renter", middle(_node_cpu), "s/token"),
    ]
    for name in sorted({name for one in rounds for name in one.cpu}):
        each = middle(lambda one, name=name: one.cpu.get(name, 0.0) / one.node["tokens"])
        rows.append(row(f"  CPU of {name}", each, "s/token"))
    return rows


def _bare_first(one: Round) -> float:
    return float(one.bare["ttft_s"])


def _node_cpu(one: Round) -> float:
    return sum(one.cpu.values()) / float(one.node["tokens"])


async def tree_rows(rounds: int, tokens: int) -> list[Row]:
    with scratch() as directory:
        async with running_tree(directory) as (world, tree, ready):
            model = Path(load_settings(world.node_file).inference.model_path)
            rows = [row("tree ready", ready, "s", "<= 15"), *await idle_rows(tree, model)]
            async with renter(world) as process:
                done = [
                    await one_round(number, tokens, model, tree, process)
                    for number in range(1, rounds + 1)
                ]
    for one in done:
        sys.stderr.write(
            f"  bare {one.bare}\n  same {one.bare_same}\n  node {one.node} engine {one.engine_first_s:.4f}, "
            f"others {one.others:.2f} cores\n"
        )
    return rows + speed_rows(done)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fabstir-bench-") as directory:
        yield Path(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/reports/demo.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--cold", action="store_true", help="also set up into an empty cache")
    parser.add_argument("--only-tree", action="store_true", help="leave the set-up times out")
    given = parser.parse_args()
    facts = report.machine()
    rows = [] if given.only_tree else set_up_rows(cold=given.cold, out=given.out)
    rows += asyncio.run(tree_rows(given.rounds, given.tokens))
    report.write(given.out, facts, rows)
    report.table(f"demo, load {facts['load_at_start']} at the start", rows)
    sys.stdout.write(f"written to {given.out}\n")


if __name__ == "__main__":
    main()
