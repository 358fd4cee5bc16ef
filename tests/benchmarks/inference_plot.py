"""Draws the report of the inference benchmark: REPORT PNG. Runs in the private environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

SERVERS = ("node", "native-split", "binding")
LABELS = ("node", "native llama.cpp server", "llama_cpp.server")
COUNTS = (1, 4, 16)


def bars(axis: Any, values: dict[str, float], suffix: str, title: str) -> None:
    width = 0.8 / len(SERVERS)
    for index, (server, label) in enumerate(zip(SERVERS, LABELS, strict=True)):
        heights = [values.get(f"{count} at once: {server}{suffix}", 0.0) for count in COUNTS]
        places = [place + (index - 1) * width for place in range(len(COUNTS))]
        axis.bar(places, heights, width, label=label)
    axis.set_xticks(range(len(COUNTS)), [f"{count} at once" for count in COUNTS])
    axis.set_title(title)


def goals(axis: Any, rows: list[dict[str, Any]]) -> None:
    """How far each figure is on the good side of its goal: 1 is just reached."""
    judged = [one for one in rows if one["goal"] and not one["goal"].startswith("==")]
    names, reached, colours = [], [], []
    for one in judged:
        sign, limit = one["goal"].split()
        value, limit = max(one["value"], 1e-9), float(limit)
        reached.append(value / limit if sign == ">=" else min(limit / value, 20.0))
        names.append(f"{one['name']} ({one['value']:g} {one['unit']}, goal {one['goal']})")
        colours.append("tab:green" if one["ok"] else "tab:red")
    axis.barh(range(len(names)), reached, color=colours)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.invert_yaxis()
    axis.set_title("goals: right of the line is reached")


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    values = {one["name"]: float(one["value"]) for one in report["rows"]}
    figure = plt.figure(figsize=(12, 10), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    left, right = upper.subplots(1, 2)
    bars(left, values, "", "generated tokens per CPU-second")
    bars(right, values, ", median first token", "median time to the first token, s")
    left.legend(fontsize=8)
    goals(lower.subplots(), report["rows"])
    facts = report["machine"]
    figure.suptitle(
        f"{facts['processor']}, {facts['threads_per_server']} thread(s) a server, {report['date'][:10]}"
    )
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
