"""fabstir-node config init|check|show|schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, settings_of

TEST_NETWORK = 84532
"""Base Sepolia: nothing is lost while one learns."""

ChainId = Annotated[int, typer.Option("--chain", min=1, help="Id of the chain to earn on.")]
Out = Annotated[Path, typer.Option("--out", help="File to write; one that is there is kept.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The settings: init, check, show, schema.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("init")(init)
    group.command("check")(check)
    group.command("show")(show)
    group.command("schema")(schema)
    app.add_typer(group, name="config")


def init(chain_id: ChainId = TEST_NETWORK, out: Out = Path("node.toml")) -> None:
    """Write a settings file with what an operator must decide; the blanks are left to fill in."""
    from nodeapp.cli.starter import starter_settings
    from nodeapp.core.errors import InvalidRequest, Unavailable

    content = starter_settings(chain_id).encode()
    try:
        if _is_untouched_sample(out):
            out.write_bytes(content)  # not replaced: it stays the node's to read
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("xb") as file:
                file.write(content)
    except FileExistsError as error:
        raise InvalidRequest(f"{out} is there already; name another file with --out") from error
    except OSError as error:
        raise Unavailable(f"{out} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"written: {out}; fill in what is empty, then\n")
    sys.stdout.write(f"  fabstir-node config check --config {out}\n")


def _is_untouched_sample(path: Path) -> bool:
    """What the installer wrote: only comments, the same as in the FILE.default beside it."""
    sample = path.with_name(path.name + ".default")
    return path.is_file() and sample.is_file() and path.read_bytes() == sample.read_bytes()


def check(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Read every source and look for what cannot work. Exit code 1 with one line an error."""
    from nodeapp.cli.preflight import findings
    from nodeapp.service.needs import remarks
    from nodeapp.service.paths import resolve_paths

    settings = settings_of(config, state_dir, flags)
    resolve_paths(settings.node)
    found = list(findings(settings))
    for line in found:
        sys.stderr.write(f"error: {line}\n")
    for line in remarks(settings):
        sys.stderr.write(f"warning: {line}\n")
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
