"""Money under kills, reorgs and lying endpoints: all three campaigns into one report.

`python -m tests.benchmarks.chain_campaign --out build/reports/chain.json`; seeds are in the notes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from tests.benchmarks.report import Row, machine, table, write

PARTS = ("kills", "reorgs", "faults")


def part_named(name: str) -> Callable[[], Coroutine[Any, Any, list[Row]]]:
    """The `run` of tests/benchmarks/chain_<name>.py.

    Raises:
        SystemExit: there is no such module; a campaign that leaves a part out proves less.
    """
    try:
        module = importlib.import_module(f"tests.benchmarks.chain_{name}")
    except ModuleNotFoundError as error:
        raise SystemExit(f"campaign part {name} is missing: {error}") from error
    part: Callable[[], Coroutine[Any, Any, list[Row]]] = module.run
    return part


def main() -> int:
    """Run the chosen parts; 1 when a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/reports/chain.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    runs = {name: part_named(name) for name in options.parts}
    rows: list[Row] = []
    for name, run in runs.items():
        found = asyncio.run(run())
        table(f"chain: {name}", found)
        rows += found
    write(options.out, machine(), rows)
    missed = [row.name for row in rows if row.ok is False]
    if missed:
        print(f"goals missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
