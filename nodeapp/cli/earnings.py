"""fabstir-node earnings: what was earned, spent, is pending or at risk; every line traceable."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, chain_settings_of

if TYPE_CHECKING:
    from nodeapp.service.settings import Settings
    from nodeapp.wire.ipc_statement import StatementPage

EXIT_UNEXPLAINED = 3


class By(StrEnum):
    """How lines are put together."""

    SESSION = "session"
    DAY = "day"
    MODEL = "model"


Grouped = Annotated[By, typer.Option("--by", help="One line a session, day or model.")]
Csv = Annotated[bool, typer.Option("--csv", help="Comma-separated, amounts in base units and wei.")]
Since = Annotated[
    str, typer.Option("--since", metavar="YYYY-MM-DD", help="Only what was settled from that day.")
]
Backup = Annotated[
    Path | None,
    typer.Option("--backup", help="Read this backup of the journal; needs neither node nor chain."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("earnings")(earnings)


def earnings(  # noqa: PLR0913, PLR0917  # one argument an option
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    by: Grouped = By.SESSION,
    since: Since = "",
    backup: Backup = None,
    as_csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Show the statement. Exit code 3: the contracts hold another sum than the journal explains."""
    from nodeapp.cli.earnings_text import Statement, csv_lines, json_line, table

    statement = Statement.of(
        _from_backup(backup) if backup else read_pages(chain_settings_of(config, state_dir, flags)),
        by=by.value,
        since=since,
    )
    if as_csv:
        sys.stdout.write("".join(csv_lines(statement)))
    elif as_json:
        sys.stdout.write(json_line(statement))
    else:
        sys.stdout.write(table(statement))
    if statement.is_unexplained:
        raise typer.Exit(EXIT_UNEXPLAINED)


def read_pages(settings: Settings) -> list[StatementPage]:
    """The statement from the process that holds the wallet."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.reach import reaching
    from nodeapp.rpc.statement import read_statement
    from nodeapp.service.chains import chosen_process

    async def ask() -> list[StatementPage]:
        async with reaching(settings, chosen_process(settings), only_reads=True) as socket:
            return await read_statement(socket)

    return run_interruptible(ask())


def _from_backup(path: Path) -> list[StatementPage]:
    from nodeapp.chain.statement import backup_pages
    from nodeapp.cli.interrupt import run_interruptible

    return run_interruptible(backup_pages(path))
