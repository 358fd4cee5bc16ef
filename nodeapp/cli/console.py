"""fabstir-node console: the machine at a glance, once or for ever."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from nodeapp.console.status import ConsoleStatus
    from nodeapp.console.terminal import Line
    from nodeapp.wire.ipc_chain import SessionView

LOOK_SECONDS = 5.0
LOOKS_A_DRAWING = 12
"""A screen is drawn anew so often: messages of the kernel have scrolled it."""
SESSIONS_SECONDS = 60.0
"""A host has many of them."""

Follow = Annotated[
    bool, typer.Option("--follow", help="Redraw when something changes, until Ctrl-C.")
]
Ttys = Annotated[
    list[Path] | None,
    typer.Option("--tty", help="Write there; repeatable. Default: this terminal, or all consoles."),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines of text, no screen and no code.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("console")(console)


def console(  # noqa: PLR0913, PLR0917  # one argument an option
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    follow: Follow = False,
    tty: Ttys = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Show phase, addresses, earnings and what to do next."""
    from nodeapp.cli.interrupt import run_interruptible

    status = _Look(config, state_dir, flags)
    if follow:
        # Being told to stop is how it ends.
        with contextlib.suppress(KeyboardInterrupt):
            run_interruptible(_follow(status, tty or []))
    else:
        _print(run_interruptible(status.now()), plain=plain, as_json=as_json)


class _Look:
    """The settings may come, go and change while a console runs."""

    def __init__(
        self, config: Path | None, state_dir: Path | None, flags: list[str] | None
    ) -> None:
        self._given = (config, state_dir, flags)
        self._sessions: tuple[SessionView, ...] | None = None
        self._listed_at = 0.0

    async def now(self) -> ConsoleStatus:
        import asyncio

        from nodeapp.console.look import look, look_at_machine
        from nodeapp.console.status import status_of
        from nodeapp.core.errors import InvalidRequest
        from nodeapp.service.paths import resolve_paths
        from nodeapp.updater.version import running_version

        settings = None
        config = self._given[0]
        if config is None or config.exists():
            try:
                settings = settings_of(*self._given)
            except InvalidRequest:
                # The node says why as soon as it is started; the console stays.
                settings = None
        machine = look_at_machine(
            has_settings=config is None or config.exists(), slot=running_version().slot
        )
        paths = resolve_paths(settings.node) if settings else None
        now = asyncio.get_running_loop().time()
        is_old = now - self._listed_at > SESSIONS_SECONDS
        seen = await look(machine, settings, paths, sessions=None if is_old else self._sessions)
        if seen.sessions is not self._sessions:
            self._sessions, self._listed_at = seen.sessions, now
        return status_of(seen)


async def _follow(look: _Look, paths: list[Path]) -> None:
    import asyncio
    import itertools

    lines = _lines(paths)
    if not lines:
        # A container, a machine without a screen: no fault, and another try finds none either.
        sys.stderr.write("no console to write to: name one with --tty\n")
        return
    for number in itertools.count():
        status = await look.now()
        for line in lines:
            trouble = line.show(status, again=number % LOOKS_A_DRAWING == 0)
            sys.stderr.write(f"{trouble}\n" if trouble else "")
        await asyncio.sleep(LOOK_SECONDS)


def _lines(paths: list[Path]) -> list[Line]:
    from nodeapp.console.look import active_consoles
    from nodeapp.console.terminal import Line, Terminal

    if not paths and sys.stdout.isatty():
        here = Terminal(sys.stdout.fileno(), is_screen=True)
        return [Line(Path("/dev/stdout"), here)]
    return [Line(path) for path in paths or active_consoles()]


def _print(status: ConsoleStatus, *, plain: bool, as_json: bool) -> None:
    import shutil

    import msgspec

    from nodeapp.console.screen import plain_lines, screen

    if as_json:
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
        return
    size = shutil.get_terminal_size()
    lines = (
        plain_lines(None, status)
        if plain or not sys.stdout.isatty()
        else screen(status, width=size.columns, height=size.lines - 1)
    )
    sys.stdout.write("\n".join(lines) + "\n")
