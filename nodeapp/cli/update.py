"""fabstir-node update check|apply|status|rollback|hold|unhold|allow: releases of the node."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from nodeapp.rpc.update import UpdateClient
    from nodeapp.service.settings import Settings
    from nodeapp.wire.ipc_update import UpdateView

    Ask = Callable[[UpdateClient], Awaitable[UpdateView]]

Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Show how it goes until the node restarts.")
]
POLL_SECONDS = 0.5
EXIT_FAILED = 3


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Releases of the node itself.", no_args_is_help=True, rich_markup_mode=None
    )
    for command in (check, apply, status, rollback, hold, unhold, allow):
        group.command(command.__name__)(command)
    app.add_typer(group, name="update")


def check(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Look what the channel offers; nothing is installed."""
    view = _ask(config, state_dir, flags, lambda client: client.check())
    _show(view, as_json=as_json)


def apply(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
    wait: Wait = True,
) -> None:
    """Install the release that is available, restart into it, go back if it is not healthy.

    Exit code 3: the update ended before the restart; the reason is shown.
    """
    _follow(config, state_dir, flags, lambda client: client.apply(), as_json=as_json, wait=wait)


def rollback(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
    wait: Wait = True,
) -> None:
    """Go back to the release that was blessed before; the one that is left is not offered again."""
    _follow(config, state_dir, flags, lambda client: client.rollback(), as_json=as_json, wait=wait)


def status(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """What runs, what is available, how the last update ended; the node need not run."""
    import asyncio

    settings = settings_of(config, state_dir, flags)
    _show(asyncio.run(_status(settings)), as_json=as_json)


def hold(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Install nothing until `unhold`; a rollback stays possible."""
    view = _ask(config, state_dir, flags, lambda client: client.hold(is_held=True))
    _show(view, as_json=as_json)


def unhold(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Allow updates again."""
    view = _ask(config, state_dir, flags, lambda client: client.hold(is_held=False))
    _show(view, as_json=as_json)


def allow(
    version: Annotated[str, typer.Argument(help="As `update status` shows it after `refused`.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Offer a version again that was refused after a failed trial or a rollback."""
    view = _ask(config, state_dir, flags, lambda client: client.allow(version))
    _show(view, as_json=as_json)


async def _status(settings: Settings) -> UpdateView:
    """From the node, else from the disk: a process started for this would be in a restart's way."""
    from nodeapp.core.errors import Unavailable
    from nodeapp.rpc.update import UpdateClient
    from nodeapp.service.clock import SystemClock
    from nodeapp.service.download import Progress
    from nodeapp.service.paths import resolve_paths
    from nodeapp.updater.update_journal import UpdateJournal
    from nodeapp.updater.updates import channel_warning, journal_path, view_of

    paths = resolve_paths(settings.node)
    try:
        async with UpdateClient(paths.socket("updater")) as client:
            return await client.status()
    except Unavailable:
        state = UpdateJournal(journal_path(settings.updater, paths)).read()
        warning = channel_warning(settings.updater, paths, SystemClock())
        return view_of(state, settings.updater, "", Progress(0, 0, 0), warning)


def _ask(config: ConfigFile, state_dir: StateDir, flags: Flags, ask: Ask) -> UpdateView:
    import asyncio

    return asyncio.run(_with_updater(config, state_dir, flags, ask))


async def _with_updater(
    config: ConfigFile, state_dir: StateDir, flags: Flags, ask: Ask
) -> UpdateView:
    from nodeapp.cli.reach import reaching
    from nodeapp.rpc.update import UpdateClient

    settings = settings_of(config, state_dir, flags)
    async with (
        reaching(settings, "updater") as socket,
        UpdateClient(socket) as client,
    ):
        return await ask(client)


def _follow(
    config: ConfigFile, state_dir: StateDir, flags: Flags, ask: Ask, *, as_json: bool, wait: bool
) -> None:
    import asyncio

    from nodeapp.core.update import RESTING, TRIAL

    async def to_the_restart(client: UpdateClient) -> UpdateView:
        view = await ask(client)
        shown = ""
        while wait and view.phase not in (*RESTING, *TRIAL):
            line = progress_line(view)
            if line != shown and not as_json:
                sys.stderr.write(f"  {line}\n")
            shown = line
            await asyncio.sleep(POLL_SECONDS)
            view = await client.status()
        return view

    view: UpdateView = asyncio.run(_with_updater(config, state_dir, flags, to_the_restart))
    _show(view, as_json=as_json)
    if wait and view.phase in RESTING:
        raise typer.Exit(EXIT_FAILED)


def progress_line(view: UpdateView) -> str:
    """`downloading 0.2.0: 40 %`."""
    line = f"{view.phase} {view.candidate}"
    if view.phase == "downloading" and view.download_bytes:
        return f"{line}: {100 * view.downloaded_bytes // view.download_bytes} %"
    return line


def _show(view: UpdateView, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(view) + b"\n")
        sys.stdout.flush()
        return
    for name, text in lines_of(view):
        sys.stdout.write(f"{name:<11} {text}\n")


def lines_of(view: UpdateView) -> list[tuple[str, str]]:
    """What a person is shown: nothing that is empty."""
    held = " (held)" if view.is_held else ""
    lines = [
        ("runs", view.running),
        ("blessed", view.current),
        ("previous", view.previous),
        ("available", view.available),
        ("notes", view.notes.strip()),
        ("on its way", view.candidate),
        ("phase", f"{view.phase}{held}"),
        ("reason", view.reason),
        ("warning", view.warning),
        ("updates", f"{view.backend}, channel {view.channel}"),
    ]
    lines += [("refused", f"{one.version}: {one.reason}") for one in view.blacklist]
    return [(name, text) for name, text in lines if text]
