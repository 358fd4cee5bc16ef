"""fabstir-node bootstrap: the node that others join by, and a relay for those nobody can dial."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[
    Path, typer.Option("--state-dir", help="Where its identity lies: keep it, it is its peer id.")
]
Listen = Annotated[
    list[str] | None,
    typer.Option("--listen", help="TCP multiaddr; repeatable. Default: /ip4/0.0.0.0/tcp/9000"),
]
Announce = Annotated[
    list[str] | None,
    typer.Option("--announce", help="Multiaddr that others are told instead; repeatable."),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option("--ready-file", help="Holds the first address while the node can be dialled."),
]
IsRelay = Annotated[bool, typer.Option("--relay", help="Carry the traffic of hosts behind NAT.")]
EVERYWHERE = "/ip4/0.0.0.0/tcp/9000"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bootstrap")(bootstrap)


def bootstrap(
    state_dir: Directory,
    listen: Listen = None,
    announce: Announce = None,
    ready_file: ReadyFile = None,
    *,
    relay: IsRelay = False,
) -> None:
    """Run a bootstrap node in the foreground; it needs no chain, no wallet and no settings."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.p2p.bootstrap import BootstrapSettings, serve
    from nodeapp.service.logs import configure_logs
    from nodeapp.service.settings import NodeSettings

    configure_logs("bootstrap", NodeSettings())
    settings = BootstrapSettings(
        state_dir, tuple(listen or (EVERYWHERE,)), tuple(announce or ()), ready_file, relay
    )
    if code := run_interruptible(serve(settings, _print)):
        raise typer.Exit(code)


def _print(addresses: Sequence[str]) -> None:
    sys.stdout.write("join by:\n" + "".join(f"  {address}\n" for address in addresses))
    sys.stdout.flush()
