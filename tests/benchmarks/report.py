"""What every benchmark shares: machine facts, rows, the report file and its table.

A report is JSON: {"machine", "date", "rows": [{"name", "value", "unit", "goal", "ok", "note"}]}.
`goal` is text such as "<= 15" or "" when nothing is asked; `ok` is null then.
"""

from __future__ import annotations

import json
import operator
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ok` follows from value and goal; make it with `row`."""

    name: str
    value: float
    unit: str
    goal: str = ""
    ok: bool | None = None
    note: str = ""


def row(name: str, value: float, unit: str, goal: str = "", note: str = "") -> Row:
    """A figure judged by its goal ("<= 3", ">= 0.9", "== 0" or "")."""
    return Row(name, round(value, 4), unit, goal, _judged(value, goal), note)


def _judged(value: float, goal: str) -> bool | None:
    if not goal:
        return None
    sign, limit = goal.split()
    return bool(_COMPARISONS[sign](value, float(limit)))


def median(values: Iterable[float]) -> float:
    """The middle of what was measured; 0 when nothing was."""
    seen = list(values)
    return statistics.median(seen) if seen else 0.0


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """The report, complete or not at all."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"machine": facts, "date": date, "rows": [asdict(one) for one in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    part.replace(path)


def kept_rows(path: Path, names: Sequence[str]) -> list[Row]:
    """Rows of an earlier report that are too dear to measure every time, dated in their note."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text("utf-8"))
    day = str(earlier["date"])[:10]
    kept = [Row(**one) for one in earlier["rows"] if one["name"] in names]
    return [
        one
        if "kept of" in one.note
        else Row(one.name, one.value, one.unit, one.goal, one.ok, f"{one.note}; kept of {day}")
        for one in kept
    ]


def table(title: str, rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows."""
    shown = Table(title=title, title_justify="left")
    for name, side in (("what", "left"), ("value", "right"), ("unit", "left"), ("goal", "left")):
        shown.add_column(name, justify=side)  # type: ignore[arg-type]
    shown.add_column("", justify="left")
    shown.add_column("note", justify="left")
    for one in rows:
        verdict = {None: "", True: "ok", False: "MISSED"}[one.ok]
        shown.add_row(one.name, f"{one.value:g}", one.unit, one.goal, verdict, one.note)
    (console or Console()).print(shown)
