"""Options that several commands share, and the settings they add up to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nodeapp.service.settings import Settings

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file (TOML).", show_default=False)
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Where this node keeps its state.", show_default=False),
]
Flags = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]


def settings_of(config: Path | None, state_dir: Path | None, flags: list[str] | None) -> Settings:
    """Load them; --state-dir wins over everything.

    Raises:
        InvalidRequest: see load_settings.
    """
    from nodeapp.service.config import load_settings

    pairs = list(flags or [])
    if state_dir is not None:
        pairs.append(f"node.state_dir={state_dir.absolute()}")
    return load_settings(config, flags=pairs)


def chain_settings_of(
    config: Path | None, state_dir: Path | None, flags: list[str] | None
) -> Settings:
    """`settings_of` for commands about one chain: its section stands in `settings.chain`.

    Raises:
        InvalidRequest: see load_settings; or node.chain names none of the chains.
    """
    from nodeapp.service.chains import with_chosen_chain

    return with_chosen_chain(settings_of(config, state_dir, flags))
