"""fabstir-node model list|add|remove|verify|info|pin|unpin|use|unload: the models kept here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from nodeapp.inference.model_store import ModelStore
    from nodeapp.service.settings import Settings

EXIT_NOT_APPROVED = 3

SourceArgument = Annotated[
    str, typer.Argument(help="FILE, https://…, s5:CID, or hub:OWNER/REPO/FILE.gguf[@REVISION].")
]
NameArgument = Annotated[str, typer.Argument(help="Name in the catalogue.")]
SomeNames = Annotated[list[str] | None, typer.Argument(help="Names; default: all.")]
OptionalName = Annotated[str, typer.Argument(help="Name; default: what the settings name.")]
NewName = Annotated[str, typer.Option("--name", help="Name here; default: made of the file's.")]
Repo = Annotated[str, typer.Option("--repo", help="Repository, as the model registry has it.")]
FileName = Annotated[str, typer.Option("--file", help="File name, as the model registry has it.")]
Sha256 = Annotated[str, typer.Option("--sha256", help="Expected hash of the file, in hex.")]
Hub = Annotated[str, typer.Option("--hub", help="Base address for hub:…; inference.hub_url.")]
Portal = Annotated[str, typer.Option("--portal", help="S5 portal for s5:…; p2p.portal_url.")]
Pin = Annotated[bool, typer.Option("--pin", help="Never remove it to make room.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Model files: fetch, check, keep, serve.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("list")(list_)
    group.command("add")(add)
    group.command("remove")(remove)
    group.command("verify")(verify)
    group.command("info")(info)
    group.command("pin")(pin)
    group.command("unpin")(unpin)
    group.command("use")(use)
    group.command("unload")(unload)
    app.add_typer(group, name="model")


def list_(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Print what is kept."""
    from nodeapp.cli.model_text import print_json, print_table, row_of

    store = _store(settings_of(config, state_dir, flags))
    rows = [row_of(entry, is_in_use=store.is_in_use(entry.sha256)) for entry in store.entries()]
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


def add(  # noqa: PLR0913, PLR0917  # one argument an option
    source: SourceArgument,
    name: NewName = "",
    repo: Repo = "",
    file_name: FileName = "",
    sha256: Sha256 = "",
    hub: Hub = "",
    portal: Portal = "",
    is_pinned: Pin = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Fetch, check and keep a model. An interrupted download goes on where it stopped."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.model_text import progress_bar, say
    from nodeapp.inference.adding import Addition, add_model
    from nodeapp.inference.catalogue import checked_digest
    from nodeapp.inference.model_source import parse_source
    from nodeapp.inference.model_store import verdicts_file
    from nodeapp.inference.probe import Prober
    from nodeapp.service.clock import SystemClock
    from nodeapp.service.paths import resolve_paths

    settings = settings_of(config, state_dir, flags)
    addition = Addition(
        source,
        parse_source(
            source,
            hub_url=hub or settings.inference.hub_url,
            portal_url=portal or settings.p2p.portal_url,
        ),
        int(SystemClock().unix_seconds()),
        name,
        repo,
        file_name,
        checked_digest(sha256) if sha256 else "",
        is_pinned,
    )
    prober = Prober(verdicts_file(resolve_paths(settings.node)))
    with progress_bar() as report:
        made = run_interruptible(
            add_model(addition, _own_store(settings), prober, report=report, say=say)
        )
    for gone in made.removed:
        sys.stderr.write(f"removed {gone} to make room\n")
    entry = made.entry
    sys.stdout.write(f"{entry.name}  {entry.size_bytes} bytes  sha256 {entry.sha256}\n")


def remove(
    name: NameArgument,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Delete a model that is neither in use nor pinned."""
    gone = _own_store(settings_of(config, state_dir, flags)).remove(name)
    sys.stdout.write(f"removed {gone.name}, {gone.size_bytes} bytes\n")


def verify(
    names: SomeNames = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Hash again and compare with the registry. Exit code 1: damaged; 3: not approved."""
    import asyncio

    from nodeapp.cli.model_registry import DIFFERS, NOT_APPROVED, registry_verdicts
    from nodeapp.cli.model_text import print_json
    from nodeapp.inference.models import file_state

    settings = settings_of(config, state_dir, flags)
    store = _store(settings)
    entries = [store.find(name) for name in names] if names else list(store.entries())
    approvals = asyncio.run(registry_verdicts(settings.chain, entries))
    found = [
        {
            "name": entry.name,
            "file": file_state(store.blob(entry.sha256), entry.sha256),
            "registry": approval,
        }
        for entry, approval in zip(entries, approvals, strict=True)
    ]
    if as_json:
        print_json(found)
    for item in [] if as_json else found:
        sys.stdout.write(f"{item['name']}: file {item['file']}, registry: {item['registry']}\n")
    if any(item["file"] != "intact" or item["registry"].startswith(DIFFERS) for item in found):
        raise typer.Exit(1)
    if any(item["registry"] == NOT_APPROVED for item in found):
        raise typer.Exit(EXIT_NOT_APPROVED)


def info(
    name: NameArgument,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Everything known of one model."""
    import asyncio

    from nodeapp.cli.model_registry import registry_verdicts
    from nodeapp.cli.model_text import print_json, row_of
    from nodeapp.inference.gguf import read_header

    settings = settings_of(config, state_dir, flags)
    store = _store(settings)
    entry = store.find(name)
    path = store.blob(entry.sha256)
    header = read_header(path)
    (approval,) = asyncio.run(registry_verdicts(settings.chain, [entry]))
    facts = row_of(entry, is_in_use=store.is_in_use(entry.sha256)) | {
        "path": str(path),
        "source": entry.source,
        "blocks": header.block_count,
        "vocabulary": header.vocabulary_size,
        "kv_bytes_per_token": header.kv_bytes * header.block_count,
        "weights_bytes": header.block_bytes + header.other_bytes,
        "has_chat_template": bool(header.chat_template),
        "registry": approval,
    }
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        sys.stdout.write(f"{key:<20} {value}\n")


def pin(
    name: NameArgument,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Never remove this model to make room."""
    _own_store(settings_of(config, state_dir, flags)).change(name, pinned=True)
    sys.stdout.write(f"{name} is pinned\n")


def unpin(
    name: NameArgument,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Let this model make room for others again."""
    _own_store(settings_of(config, state_dir, flags)).change(name, pinned=False)
    sys.stdout.write(f"{name} is not pinned any more\n")


def use(
    name: OptionalName = "",
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Serve this model now and after restarts; open requests finish first. The node must run."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.model_text import change_model

    settings = settings_of(config, state_dir, flags)
    run_interruptible(change_model(settings, name))


def unload(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Serve no model until `model use` or a restart; its memory is free then."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.model_text import change_model

    run_interruptible(change_model(settings_of(config, state_dir, flags), None))


def _store(settings: Settings) -> ModelStore:
    from nodeapp.inference.model_store import model_store
    from nodeapp.service.paths import resolve_paths

    return model_store(settings.inference, resolve_paths(settings.node))


def _own_store(settings: Settings) -> ModelStore:
    """To write to."""
    from nodeapp.cli.owner import refuse_foreign

    store = _store(settings)
    refuse_foreign(store.root)
    return store
