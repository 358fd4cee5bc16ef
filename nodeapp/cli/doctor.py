"""fabstir-node doctor: what this machine and these settings lack, each with its remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, settings_of

MIN_FREE_BYTES = 2 << 30


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Look at settings, disk, parts from set-up and the chain. Exit code 1 on a finding."""
    from nodeapp.cli.preflight import findings
    from nodeapp.service.paths import resolve_paths

    settings = settings_of(config, state_dir, flags)
    paths = resolve_paths(settings.node)
    found = [*findings(settings), *_disk(paths.state), *_rpc(settings.chain.rpc_urls)]
    for line in found:
        sys.stdout.write(f"finding: {line}\n")
    if found:
        raise typer.Exit(1)
    sys.stdout.write("no findings\n")


def _disk(state: object) -> Iterator[str]:
    import shutil
    from pathlib import Path

    place = Path(str(state))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < MIN_FREE_BYTES:
        yield f"{place} has {free >> 20} MB free; the journal and results need room: free 2 GB"


def _rpc(urls: tuple[str, ...]) -> Iterator[str]:
    import socket
    from urllib.parse import urlsplit

    for url in urls:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=3).close()
        except OSError as error:
            yield f"chain.rpc_urls: {parts.hostname}:{port} is not reachable ({error})"
