"""fabstir-node status: what supervisord and every process say."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeapp.service.tree import ProcessStatus

EXIT_NOT_READY = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Show every process. Exit code 0: all ready; 3: something is not; 1: the node is down."""
    import asyncio

    from nodeapp.cli.reach import no_node
    from nodeapp.service.paths import resolve_paths
    from nodeapp.service.supervisord import WATCHDOG
    from nodeapp.service.tree import running_processes, tree_status

    settings = settings_of(config, state_dir, flags)
    paths = resolve_paths(settings.node)

    async def look() -> list[ProcessStatus]:
        return await tree_status(
            paths, (*await running_processes(paths, settings.node.processes), WATCHDOG)
        )

    found = asyncio.run(look())
    is_up = any(item.state != "UNKNOWN" or item.ready is not None for item in found)
    if as_json:
        _print_json(found)
    elif is_up:
        _print_table(found)
    if not is_up:
        raise no_node(paths)
    if not all(item.ready for item in found):
        raise typer.Exit(EXIT_NOT_READY)


def _print_json(found: Sequence[ProcessStatus]) -> None:
    import msgspec

    sys.stdout.buffer.write(msgspec.json.encode({"processes": found}) + b"\n")
    sys.stdout.flush()


def _print_table(found: Sequence[ProcessStatus]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("process", "state", "ready", "pid", "up", "detail"):
        table.add_column(title, overflow="fold")
    for item in found:
        ready = "yes" if item.ready else "no" if item.ready is not None else "silent"
        row = (item.process, item.state, ready, str(item.pid or "-"))
        table.add_row(*row, f"{item.uptime_seconds:.0f} s", item.detail)
    Console().print(table)
