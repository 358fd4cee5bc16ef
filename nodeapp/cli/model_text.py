"""What the model commands show: the table, progress of a download and of a model change."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.core.model_card import model_id
from nodeapp.inference.catalogue import CatalogueEntry
from nodeapp.rpc.inference import InferenceClient
from nodeapp.service.clock import SystemClock
from nodeapp.service.download import Progress
from nodeapp.service.paths import resolve_paths
from nodeapp.service.replicas import FIRST, replica_processes
from nodeapp.service.settings import Settings
from nodeapp.service.tree import running_processes

POLL_SECONDS = 0.2
LINE_SECONDS = 5.0
"""How often progress is told where there is no terminal."""


def row_of(entry: CatalogueEntry, *, is_in_use: bool) -> dict[str, object]:
    """The facts of `model list`."""
    return {
        "name": entry.name,
        "size_bytes": entry.size_bytes,
        "quantisation": entry.quantisation,
        "context_length": entry.context_length,
        "licence": entry.licence,
        "repo": entry.repo,
        "file_name": entry.file_name,
        "model_id": model_id(entry.repo, entry.file_name),
        "sha256": entry.sha256,
        "pinned": entry.pinned,
        "in_use": is_in_use,
        "last_used": entry.last_used,
    }


def print_json(value: object) -> None:
    """On standard output."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """One line a model."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    titles = ("name", "size", "quant", "context", "licence", "model id", "pin", "used", "last used")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)
    if not rows:
        sys.stderr.write("no model is kept; `fabstir-node model add` fetches one\n")


def _cells(row: Mapping[str, object]) -> tuple[str, ...]:
    return (
        str(row["name"]),
        f"{int(str(row['size_bytes'])) / (1 << 20):.0f} MiB",
        str(row["quantisation"]),
        str(row["context_length"]),
        str(row["licence"] or "-"),
        f"{str(row['model_id'])[:10]}…",
        "yes" if row["pinned"] else "-",
        "yes" if row["in_use"] else "-",
        _age(int(str(row["last_used"]))),
    )


def _age(at: int) -> str:
    if not at:
        return "never"
    seconds = max(0, int(SystemClock().unix_seconds()) - at)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def say(text: str) -> None:
    """One line about what happens."""
    sys.stderr.write(f"{text}\n")


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar with rate and time left on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines().report
        return
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("download", total=None)

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total or None)

        yield report


class _Lines:
    def __init__(self) -> None:
        self._clock = SystemClock()
        self._began: tuple[float, int] | None = None
        self._told = 0.0

    def report(self, progress: Progress) -> None:
        now = self._clock.monotonic_seconds()
        if self._began is None:
            self._began = (now, progress.done)
            if progress.resumed:
                say(f"going on after {progress.resumed} bytes")
        is_end = progress.total and progress.done >= progress.total
        if now - self._told < LINE_SECONDS and not is_end:
            return
        self._told = now
        began, first = self._began
        rate = (progress.done - first) / max(now - began, 1e-3)
        line = f"{progress.done} of {progress.total or '?'} bytes, {rate / 1e6:.1f} MB/s"
        if rate and progress.total:
            line += f", {(progress.total - progress.done) / rate:.0f} s left"
        say(line)


async def change_model(settings: Settings, name: str | None) -> None:
    """Ask every replica of the running node in turn, the others serve meanwhile; None: unload.

    Raises:
        Unavailable: the node does not run, or a change was not made: says why.
    """
    paths = resolve_paths(settings.node)
    replicas = replica_processes(await running_processes(paths, settings.node.processes))
    if len(replicas) <= 1:
        sys.stdout.write(f"{await _change_one(paths.socket(FIRST), name)}\n")
        return
    failures: list[str] = []
    for process in replicas:
        try:
            sys.stdout.write(f"{process}: {await _change_one(paths.socket(process), name)}\n")
        except NodeError as error:
            failures.append(f"{process}: {error.message}")
    if failures:
        raise Unavailable("; ".join(failures))


async def _change_one(socket: Path, name: str | None) -> str:
    """What one replica serves in the end."""
    async with InferenceClient(socket) as client:
        state = await (client.unload_model() if name is None else client.use_model(name))
        told = ""
        while state.phase not in ("serving", "none"):
            if state.detail != told:
                told = state.detail
                say(told)
            await asyncio.sleep(POLL_SECONDS)
            state = await client.model_state()
    if state.error:
        served = f"; {state.name} is still served" if state.phase == "serving" else ""
        raise Unavailable(f"{state.error}{served}")
    return state.detail
