"""fabstir-node backup create|list|verify|restore: the journal's snapshots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from nodeapp.service.settings import Settings

BackupPath = Annotated[Path, typer.Argument(help="A backup file (journal-….sqlite).")]
To = Annotated[
    Path | None, typer.Option("--to", help="Default: where the chain process looks for it.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Snapshots of the journal.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("create")(create)
    group.command("list")(list_)
    group.command("verify")(verify)
    group.command("restore")(restore)
    app.add_typer(group, name="backup")


def snapshot_dir(settings: Settings) -> Path:
    """Where the updater puts them."""
    from nodeapp.service.paths import resolve_paths

    return Path(settings.updater.snapshot_dir or resolve_paths(settings.node).state / "snapshots")


def create(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Make and verify one now; the node must run."""
    import asyncio

    from nodeapp.rpc.updater import UpdaterClient
    from nodeapp.service.paths import resolve_paths
    from nodeapp.wire.ipc_updater import SnapshotView

    async def ask() -> SnapshotView:
        socket = resolve_paths(settings.node).socket("updater")
        async with UpdaterClient(socket) as client:
            return await client.snapshot()

    settings = settings_of(config, state_dir, flags)
    made = asyncio.run(ask())
    sys.stdout.write(f"{made.path}  {made.records} records  sha256 {made.sha256}\n")


def list_(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Print what is kept, oldest first."""
    import msgspec

    from nodeapp.service.chains import FIRST, chain_processes, snapshots_of
    from nodeapp.store.backups import list_backups

    settings = settings_of(config, state_dir, flags)
    directory = snapshot_dir(settings)
    chains = chain_processes(settings.node.processes) or (FIRST,)
    found = [item for one in chains for item in list_backups(snapshots_of(directory, one))]
    if as_json:
        rows = [
            {
                "path": str(item.path),
                "sha256": item.sha256,
                "size_bytes": item.size_bytes,
                "records": item.records,
            }
            for item in found
        ]
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    for item in found:
        sys.stdout.write(f"{item.path}  {item.records} records  {item.size_bytes} bytes\n")


def verify(path: BackupPath) -> None:
    """Check one: hash, every page, and that no record is missing."""
    from nodeapp.store.backups import verify_backup

    found = verify_backup(path)
    sys.stdout.write(f"{found.path} is intact: {found.records} records, sha256 {found.sha256}\n")


def restore(
    path: BackupPath,
    to: To = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Put a verified backup where the journal is missing; an existing one is never overwritten."""
    from nodeapp.service.chains import FIRST, name_of
    from nodeapp.service.paths import resolve_paths
    from nodeapp.store.backups import restore_backup

    settings = settings_of(config, state_dir, flags)
    # A further chain's snapshots lie in a directory with the name of its process.
    process = path.absolute().parent.name
    owner = process if name_of(process) else FIRST
    target = to or resolve_paths(settings.node).journal_of(owner)
    done = restore_backup(path, target)
    sys.stdout.write(f"restored {done.records} records to {target}\n")
