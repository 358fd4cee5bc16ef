"""fabstir-node backup create|init|adopt|list|verify|restore|drill: copies and the repository.

A backup is named by its id in the repository, "latest", or the path of a local journal copy.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from nodeapp.rpc.updater import UpdaterClient
    from nodeapp.service.settings import Settings
    from nodeapp.updater.drill import Repository
    from nodeapp.wire.ipc_updater import BackupView, RestorePreview

Which = Annotated[
    str,
    typer.Argument(help="Id in the repository, latest, or a file (journal-….sqlite)."),
]
To = Annotated[
    Path | None,
    typer.Option("--to", help="For a file: default is where the chain process looks for it."),
]
Account = Annotated[
    str, typer.Option("--account", help="Host account, where several share the repository.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and stop.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Move aside what is in the way; nothing is deleted.")
]
ReadData = Annotated[
    bool, typer.Option("--read-data", help="Also read every byte that the repository holds.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Backups of the node, and copies of its journal.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("create")(create)
    group.command("init")(init)
    group.command("adopt")(adopt)
    group.command("list")(list_)
    group.command("verify")(verify)
    group.command("restore")(restore)
    group.command("drill")(drill)
    app.add_typer(group, name="backup")


def snapshot_dir(settings: Settings) -> Path:
    """Where the updater puts copies of the journal."""
    from nodeapp.service.paths import resolve_paths

    return Path(settings.updater.snapshot_dir or resolve_paths(settings.node).state / "snapshots")


def create(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Make one now and restore it for a test; the node must run."""

    async def ask(client: UpdaterClient) -> str:
        if settings.updater.restic_repository:
            return _made(await client.backup())
        copy = await client.snapshot()
        return f"{copy.path}  {copy.records} records  sha256 {copy.sha256}"

    settings = settings_of(config, state_dir, flags)
    _ask(settings, ask)


def init(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Go on with the repository that is there now, a new one if there is none; the node must run.

    For a new backup disk. Otherwise another repository than the last backup's is refused.
    """

    async def ask(client: UpdaterClient) -> str:
        return _made(await client.backup_init())

    _ask(settings_of(config, state_dir, flags), ask)


def adopt(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Back up the journal that is here after another journal's backups; the node must run.

    For a node that was begun anew although the repository holds its account's backups: what those
    know and this journal does not is given up. They stay in the repository.
    """

    async def ask(client: UpdaterClient) -> str:
        return _made(await client.backup_adopt())

    _ask(settings_of(config, state_dir, flags), ask)


def _made(made: BackupView) -> str:
    keys = "with keys" if made.has_keys else "WITHOUT keys"
    return (
        f"{made.id[:8]}  {made.records} records, {made.sessions} sessions, {keys},"
        f" restored for a test and replayed in {made.seconds:.1f} s"
    )


def _ask(settings: Settings, question: Callable[[UpdaterClient], Awaitable[str]]) -> None:
    import asyncio

    from nodeapp.cli.reach import running_node
    from nodeapp.rpc.updater import UpdaterClient
    from nodeapp.service.paths import resolve_paths

    paths = resolve_paths(settings.node)

    async def answer() -> str:
        async with UpdaterClient(paths.socket("updater")) as client:
            return await question(client)

    with running_node(paths):
        sys.stdout.write(asyncio.run(answer()) + "\n")


def list_(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Print local journal copies, then the repository's backups; each oldest first."""
    import asyncio

    import msgspec

    from nodeapp.service.chains import FIRST, chain_processes, snapshots_of
    from nodeapp.store.backups import list_backups

    settings = settings_of(config, state_dir, flags)
    directory = snapshot_dir(settings)
    chains = chain_processes(settings.node.processes) or (FIRST,)
    found = [item for one in chains for item in list_backups(snapshots_of(directory, one))]
    stored = (
        asyncio.run(_repository(settings).restic.stored())
        if settings.updater.restic_repository
        else []
    )
    if as_json:
        rows: list[dict[str, object]] = [
            {
                "path": str(item.path),
                "sha256": item.sha256,
                "size_bytes": item.size_bytes,
                "records": item.records,
            }
            for item in found
        ]
        rows += [
            {
                "id": one.id,
                "made_at": one.made_at,
                "account": one.account,
                "history": one.history,
                "sequence": one.sequence,
            }
            for one in stored
        ]
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    for item in found:
        sys.stdout.write(f"{item.path}  {item.records} records  {item.size_bytes} bytes\n")
    for one in stored:
        number = f"  {one.history}/{one.sequence}" if one.sequence else ""
        sys.stdout.write(f"{one.id[:8]}  {one.made_at[:19]}  {one.account}{number}\n")


def verify(
    which: Which,
    account: Account = "",
    read_data: ReadData = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Check one: every hash and page, that it unseals and that its journals replay."""
    import asyncio

    from nodeapp.store.backups import verify_backup

    if _is_file(which):
        found = verify_backup(Path(which))
        sys.stdout.write(
            f"{found.path} is intact: {found.records} records, sha256 {found.sha256}\n"
        )
        return

    async def look() -> str:
        await repository.restic.check(read_data=read_data)
        async with repository.tested(which, account) as (tested, _scratch):
            manifest = tested.fetched.manifest
            keys = ", ".join(sorted(tested.keys)) or "none opened"
            return (
                f"{tested.fetched.backup.id[:8]} is intact: {manifest.records} records replayed,"
                f" {manifest.blobs} blobs, keys: {keys}"
            )

    settings = settings_of(config, state_dir, flags)
    repository = _repository(settings)
    with _on_record(settings, "verify", which):
        sys.stdout.write(asyncio.run(look()) + "\n")


def restore(  # noqa: PLR0913, PLR0917 (typer reads options from parameters)
    which: Which,
    to: To = None,
    dry_run: DryRun = False,
    replace: Replace = False,
    account: Account = "",
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Test a backup, show what it would change, and put it back; the node must be stopped."""
    import asyncio

    settings = settings_of(config, state_dir, flags)
    if _is_file(which):
        with _on_record(settings, "restore", which):
            _restore_file(Path(which), to, settings)
        return
    with _on_record(settings, "restore", which, "dry run" if dry_run else ""):
        preview = asyncio.run(
            _repository(settings).restore(which, account, is_dry_run=dry_run, replace=replace)
        )
    sys.stdout.write(_preview_text(preview))
    sys.stdout.write("nothing was written\n" if dry_run else "restored\n")


def drill(
    which: Which = "latest",
    account: Account = "",
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Restore everything into an empty directory, open it there, report, remove it."""
    import asyncio

    import msgspec

    settings = settings_of(config, state_dir, flags)
    with _on_record(settings, "drill", which):
        report = asyncio.run(_repository(settings).drill(which, account))
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    sys.stdout.write(_preview_text(report.preview))
    sys.stdout.write(
        f"drill passed: {len(report.journals)} journals replayed, {len(report.keys)} keys,"
        f" {report.blobs} blobs; fetched in {report.fetch_seconds:.1f} s, restored in"
        f" {report.restore_seconds:.1f} s\n"
    )


@contextlib.contextmanager
def _on_record(settings: Settings, action: str, which: str, detail: str = "") -> Iterator[None]:
    """What an operator did to backups without the node, in the log of operators."""
    from nodeapp.core.audit import BackupAction
    from nodeapp.core.errors import NodeError
    from nodeapp.service.audit import direct_audit

    audit = direct_audit(settings.node, "operator")
    try:
        yield
    except NodeError as error:
        audit.record(BackupAction(action, which, error.code, error.message))
        raise
    audit.record(BackupAction(action, which, "done", detail))


def _repository(settings: Settings) -> Repository:
    from nodeapp.service.clock import SystemClock
    from nodeapp.updater.drill import Repository

    return Repository(settings, SystemClock())


def _is_file(which: str) -> bool:
    return "/" in which or which.endswith(".sqlite")


def _restore_file(path: Path, to: Path | None, settings: Settings) -> None:
    from nodeapp.service.chains import FIRST, name_of
    from nodeapp.service.paths import resolve_paths
    from nodeapp.store.backups import restore_backup

    # A further chain's copies lie in a directory with the name of its process.
    process = path.absolute().parent.name
    owner = process if name_of(process) else FIRST
    target = to or resolve_paths(settings.node).journal_of(owner)
    done = restore_backup(path, target)
    sys.stdout.write(f"restored {done.records} records to {target}\n")


def _preview_text(preview: RestorePreview) -> str:
    lines = [
        f"backup {preview.id[:8]} of {preview.account}, {preview.age} old,"
        f" made by node {preview.node_version}"
    ]
    lines += [
        f"  {step.action:<7}  {step.what}: {step.target} ({step.detail})" for step in preview.steps
    ]
    lines += [
        f"  MISSING  key {name}: neither in this backup nor here" for name in preview.missing_keys
    ]
    return "\n".join(lines) + "\n"
