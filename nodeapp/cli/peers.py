"""fabstir-node peers: who the node is on the network, and who is kept out of it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nodeapp.rpc.p2p import P2pClient
    from nodeapp.service.settings import Settings
    from nodeapp.wire.ipc import Message
    from nodeapp.wire.ipc_p2p import BanView

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="peer:<id>, wallet:<address> or subnet:<CIDR>.")]
SECONDS_PER_HOUR = 3600


def register(app: typer.Typer) -> None:
    """Add the command group."""
    peers = typer.Typer(
        name="peers",
        help="Who the node is on the network, and who is kept out of it.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    peers.command("show")(show)
    peers.command("bans")(bans)
    peers.command("ban")(ban)
    peers.command("unban")(unban)
    app.add_typer(peers)


def show(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """The node's peer id and addresses, and how many peers are connected."""
    view = _ask(settings_of(config, state_dir, flags), lambda p2p: p2p.network())
    if as_json:
        return _print_json(view)
    lines = [
        f"peer id        {view.peer_id}",
        *(f"address        {address}" for address in view.addresses),
        f"connected      {view.connected_peers} peers, {view.conversations} conversations",
        f"reachable      {view.reachability}",
        *(f"announced      {model}" for model in view.announced_models),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return None


def bans(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Who is kept out, why and until when."""
    found = _ask(settings_of(config, state_dir, flags), lambda p2p: p2p.bans())
    if as_json:
        return _print_json(found)
    for one in found.bans:
        sys.stdout.write(_line(one))
    if not found.bans:
        sys.stdout.write("nobody is banned\n")
    return None


def ban(  # one argument an option
    name: Name,
    hours: Annotated[float, typer.Option(help="For how long.", min=0.01, max=8760)] = 24.0,
    reason: Annotated[str, typer.Option(help="Shown in the list.")] = "by the operator",
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Keep a peer, a wallet or a subnet out. Its connections are not served from now on."""
    from nodeapp.wire.ipc_p2p import BanRequest

    request = BanRequest(name, reason, hours * SECONDS_PER_HOUR)
    sys.stdout.write(
        _line(_ask(settings_of(config, state_dir, flags), lambda p2p: p2p.ban(request)))
    )


def unban(
    name: Name, config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None
) -> None:
    """Let somebody in again."""
    _ask(settings_of(config, state_dir, flags), lambda p2p: p2p.lift(name))
    sys.stdout.write(f"{name} is served again\n")


def _ask(settings: Settings, question: Callable[[P2pClient], Awaitable[T]]) -> T:
    import asyncio

    from nodeapp.cli.reach import running_node
    from nodeapp.rpc.p2p import P2pClient
    from nodeapp.service.paths import resolve_paths

    paths = resolve_paths(settings.node)

    async def ask() -> T:
        async with P2pClient(paths.socket("p2p")) as p2p:
            return await question(p2p)

    with running_node(paths):
        return asyncio.run(ask())


def _line(one: BanView) -> str:
    until = datetime.fromtimestamp(one.until, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{one.name}  until {until}  {one.reason}\n"


def _print_json(message: Message) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
