"""fabstir-node gpu: what the driver says of every GPU, and what this node makes of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from nodeapp.cli.options import Json

if TYPE_CHECKING:
    from nodeapp.inference.gpu import Gpu

EXIT_FAULTY = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gpu")(gpu)


def gpu(as_json: Json = False) -> None:
    """Show memory, heat, power, clocks and faults. Exit code 3: a device is faulty."""
    from nodeapp.inference.gpu import Condition, judge
    from nodeapp.inference.nvml import NvmlInventory

    found = NvmlInventory().devices()
    if as_json:
        _print_json(found)
    elif found:
        _print_table(found)
    else:
        sys.stdout.write("no NVIDIA GPU, or no driver: models run on the processor\n")
    if any(judge(one).condition is Condition.FAULTY for one in found):
        raise typer.Exit(EXIT_FAULTY)


def _print_json(found: tuple[Gpu, ...]) -> None:
    import msgspec

    from nodeapp.inference.gpu import judge

    rows = [
        msgspec.to_builtins(one) | {"judgement": msgspec.to_builtins(judge(one))} for one in found
    ]
    sys.stdout.buffer.write(msgspec.json.encode({"gpus": rows}) + b"\n")
    sys.stdout.flush()


def _print_table(found: tuple[Gpu, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from nodeapp.inference.gpu import judge

    table = Table(box=None, pad_edge=False)
    for title in ("gpu", "name", "free", "°C", "watts", "MHz", "load", "users", "condition"):
        table.add_column(title, overflow="fold")
    for one in found:
        judgement = judge(one)
        table.add_row(
            str(one.index),
            one.name,
            f"{one.free_bytes >> 20} of {one.total_bytes >> 20} MiB",
            _said(one.temperature_celsius),
            f"{_said(one.power_watts)} of {_said(one.power_limit_watts)}",
            f"{_said(one.clock_mhz)} of {_said(one.max_clock_mhz)}",
            f"{_said(one.load_percent)} %",
            ", ".join(_user(process.pid) for process in one.processes) or "-",
            f"{judgement.condition} {judgement.reason}".strip(),
        )
    Console().print(table)


def _user(pid: int) -> str:
    """The process id, and which replica of this node it is."""
    import psutil

    from nodeapp.service.replicas import replica_process

    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return str(pid)
    if "nodeapp.inference.main" not in words:
        return str(pid)
    further = words[words.index("--replica") + 1] if "--replica" in words else "0"
    return f"{replica_process(int(further))} ({pid})"


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
