"""fabstir-node config check|show|schema."""

from __future__ import annotations

import sys

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, settings_of


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The settings: check, show, schema.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("check")(check)
    group.command("show")(show)
    group.command("schema")(schema)
    app.add_typer(group, name="config")


def check(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Read every source and look for what cannot work. Exit code 1 with one line a finding."""
    from nodeapp.cli.preflight import findings
    from nodeapp.service.paths import resolve_paths

    settings = settings_of(config, state_dir, flags)
    resolve_paths(settings.node)
    found = list(findings(settings))
    for line in found:
        sys.stderr.write(f"error: {line}\n")
    if found:
        raise typer.Exit(1)
    sys.stdout.write("settings are right\n")


def show(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Print the settings as they are in effect (TOML); they hold paths of secrets, no secrets."""
    from nodeapp.service.supervisord import settings_toml

    sys.stdout.write(settings_toml(settings_of(config, state_dir, flags)))


def schema() -> None:
    """Print the JSON schema of the settings file."""
    import msgspec

    from nodeapp.service.settings import Settings

    text = msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Settings)), indent=2)
    sys.stdout.write(text.decode() + "\n")
