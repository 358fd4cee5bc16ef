"""fabstir-node health: does the node run well now; with --boot, may this boot be blessed?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from nodeapp.service.settings import Settings

EXIT_UNHEALTHY = 1
MAX_BOOT_SECONDS = 1500.0
"""Shorter than the unit's TimeoutStartSec: a verdict is better than a kill."""

Boot = Annotated[
    bool, typer.Option("--boot", help="Judge a release that was booted for a trial, by its gate.")
]
Seconds = Annotated[
    float, typer.Option("--seconds", min=0.1, max=3600, help="To become healthy by.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("health")(health)


def health(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    boot: Boot = False,
    seconds: Seconds = 5.0,
) -> None:
    """Ask every process, as the health gate of an update does. Exit code 1: not healthy.

    With --boot, a boot that is no trial is let pass whatever its state is.
    """
    import asyncio

    if boot:
        settings, trouble = _settings_at_boot(config, state_dir, flags)
        failure = asyncio.run(_boot(settings, trouble))
    else:
        failure = asyncio.run(_now(settings_of(config, state_dir, flags), seconds))
    if failure:
        sys.stderr.write(f"not healthy: {failure}\n")
        raise typer.Exit(EXIT_UNHEALTHY)
    sys.stdout.write("nothing against this boot\n" if boot else "healthy\n")


async def _now(settings: Settings, seconds: float) -> str:
    from nodeapp.service.paths import resolve_paths
    from nodeapp.updater.gate import TreeGate
    from nodeapp.updater.version import running_version

    version = running_version()
    gate = TreeGate(resolve_paths(settings.node), seconds, 0.0)
    return await gate.failure(version.slot or version.version, 0)


def _settings_at_boot(
    config: Path | None, state_dir: Path | None, flags: list[str] | None
) -> tuple[Settings, str]:
    """Defaults, and why, where the node could not start: only a trial may fail for that."""
    from nodeapp.core.errors import InvalidRequest

    try:
        return settings_of(config, state_dir, flags), ""
    except InvalidRequest as error:
        return settings_of(None, state_dir, flags), error.message


async def _boot(settings: Settings, trouble: str) -> str:
    """Args: `trouble` is why these are not the node's own settings; then only a trial fails."""
    from nodeapp.service.audit import direct_audit
    from nodeapp.service.logs import configure_logs
    from nodeapp.service.paths import resolve_paths
    from nodeapp.updater.boot_health import BootHealth, SettingsUnusable
    from nodeapp.updater.gate import TreeGate
    from nodeapp.updater.nixos import NixosBackend
    from nodeapp.updater.sysupdate import SysupdateBackend
    from nodeapp.updater.update_journal import UpdateJournal
    from nodeapp.updater.updates import journal_path
    from nodeapp.updater.version import running_version

    runs = running_version()
    backend = settings.updater.backend
    if trouble:
        backend = "sysupdate" if runs.slot else "nixos"
    if backend not in ("sysupdate", "nixos"):
        return ""  # judged by the launcher, or nobody updates it
    configure_logs("health", settings.node)
    paths = resolve_paths(settings.node)
    settle = min(settings.updater.gate_settle_seconds, MAX_BOOT_SECONDS / 2)
    allowed = min(settings.updater.gate_seconds, MAX_BOOT_SECONDS - settle)
    judge = BootHealth(
        UpdateJournal(journal_path(settings.updater, paths), direct_audit(settings.node, "boot")),
        SysupdateBackend(runs.slot) if backend == "sysupdate" else NixosBackend(runs.version),
        SettingsUnusable(trouble) if trouble else TreeGate(paths, allowed, settle),
    )
    return await judge.failure()
