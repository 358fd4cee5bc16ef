"""What the p2p process costs: `make bench-p2p` writes build/reports/p2p.json.

The real p2p process (libp2p, admission, relay, receipts) between real renters and a backend of the
real ledger and an engine that keeps time. CPU seconds are those of the p2p process alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from nodeapp.devnet.world import free_port
from nodeapp.network.settings import PROCESS_ENVIRONMENT
from nodeapp.service.settings import P2pSettings
from tests.benchmarks.report import ROOT, Row, machine, row, table, write

RATE = 40.0
RENTERS = 32
TOKENS = 400
REQUESTS = 10_000
DEFAULT_FLUSH = P2pSettings().flush_seconds
FLUSHES = (0.01, DEFAULT_FLUSH, 0.05)
READY_SECONDS = 60.0


class Program:
    """A child that talks in lines of JSON."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **PROCESS_ENVIRONMENT},
            text=True,
        )

    def heard(self) -> dict[str, float]:
        """The next line of facts."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):
                return dict(json.loads(line))
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Node:
    """The p2p process under test with its backend."""

    def __init__(self, directory: Path, *, renters: int, rate: float, flush: float) -> None:
        self.directory = directory
        self._programs = [
            Program(
                "tests.benchmarks.p2p_backend",
                *("--dir", directory, "--renters", renters, "--tokens-per-second", rate),
            )
        ]
        until((directory / "run" / "inference.sock").exists)
        port = free_port()
        sets = (
            f"node.state_dir={directory}",
            f"node.run_dir={directory / 'run'}",
            f"p2p.listen=/ip4/127.0.0.1/tcp/{port}",
            f"p2p.flush_seconds={flush}",
            "p2p.handshakes_per_minute=600",
        )
        words = [word for pair in sets for word in ("--set", pair)]
        p2p = Program("nodeapp.p2p.main", *words)
        self._programs.append(p2p)
        self.process = psutil.Process(p2p.process.pid)
        self.address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{self._peer_id()}"

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        return float(self.process.memory_info().rss) / 2**20

    def end(self) -> None:
        for program in reversed(self._programs):
            program.end()

    def _peer_id(self) -> str:
        import asyncio

        from nodeapp.core.errors import Unavailable
        from nodeapp.rpc.p2p import P2pClient

        async def ask() -> str:
            async with P2pClient(self.directory / "run" / "p2p.sock") as client:
                return (await client.network()).peer_id

        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                return asyncio.run(ask())
            except (Unavailable, RuntimeError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)


def until(condition) -> None:
    end = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("backend did not come up")
        time.sleep(0.05)


@contextlib.contextmanager
def running_node(
    *, renters: int, rate: float = RATE, flush: float = DEFAULT_FLUSH
) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="fb") as text:
        node = Node(Path(text), renters=renters, rate=rate, flush=flush)
        try:
            yield node
        finally:
            node.end()


def streams(renters: int, flush: float, tokens: int) -> list[Row]:
    """CPU per token, and how long tokens are on their way."""
    with running_node(renters=renters, flush=flush) as node:
        program = Program(
            "tests.benchmarks.p2p_renters",
            *("stream", "--address", node.address, "--dir", node.directory),
            *("--renters", renters, "--tokens", tokens),
        )
        program.heard()
        before = node.cpu_seconds()
        program.go()
        facts = program.heard()
        spent = node.cpu_seconds() - before
        program.process.wait(20)
    name = f"{renters} streams at {RATE:g} tok/s, flush {flush * 1000:g} ms"
    is_default = flush == DEFAULT_FLUSH
    return [
        row(
            f"CPU per token, {name}",
            1000 * spent / facts["tokens"],
            "ms",
            "<= 0.15" if is_default else "",
        ),
        row(f"tokens a message, {name}", facts["tokens"] / facts["batches"], ""),
        row(f"way of a token p50, {name}", facts["p50_ms"], "ms"),
        row(f"way of a token p99, {name}", facts["p99_ms"], "ms", "<= 30" if is_default else ""),
        row(
            f"first token on a warm stream, {name}",
            facts["warm_first_token_ms"],
            "ms",
            "<= 20" if renters == 1 and is_default else "",
        ),
    ]


def memory(requests: int) -> list[Row]:
    """Whether the process grows from a tenth of the requests to all of them."""
    with running_node(renters=4, rate=100_000.0) as node:
        program = Program(
            "tests.benchmarks.p2p_renters",
            *("requests", "--address", node.address, "--dir", node.directory, "--count", requests),
        )
        program.heard()
        early = node.rss_mib()
        program.go()
        program.heard()
        late = node.rss_mib()
        program.process.wait(20)
    return [
        row(f"memory after {requests // 10} requests", early, "MiB"),
        row(f"growth until {requests} requests", late - early, "MiB", "<= 10"),
    ]


def bulk(mib: int = 50) -> list[Row]:
    """One stream, one direction, two processes."""
    with tempfile.TemporaryDirectory(prefix="fb") as text:
        sink = Program("tests.benchmarks.p2p_renters", "sink", "--dir", text)
        try:
            address = sink.heard()["address"]
            sender = Program(
                "tests.benchmarks.p2p_renters",
                *("bulk", "--address", address, "--dir", text, "--mib", mib),
            )
            facts = sender.heard()
            sender.process.wait(20)
        finally:
            sink.end()
    assert facts["bytes"] == mib << 20
    return [row(f"bulk transfer of {mib} MiB", mib * 1.048576 / facts["seconds"], "MB/s", ">= 20")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "p2p.json")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    asked = parser.parse_args()
    facts = machine()
    parts = [
        partial(streams, renters, flush, asked.tokens)
        for renters in (1, RENTERS)
        for flush in FLUSHES
    ]
    rows: list[Row] = []
    for part in (*parts, bulk, partial(memory, asked.requests)):
        rows += part()
        write(asked.out, facts, rows)
    table("p2p", rows)


if __name__ == "__main__":
    main()
