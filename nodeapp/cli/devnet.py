"""fabstir-node devnet: a local chain with all that node and renter need, in the foreground."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nodeapp.devnet.world import WorldOptions

Directory = Annotated[
    Path | None,
    typer.Option("--dir", help="Where chain, keys and settings files go.", show_default=False),
]
ChainId = Annotated[int, typer.Option("--chain-id", min=1, help="Chain id of the local chain.")]
RpcPort = Annotated[int, typer.Option("--rpc-port", min=0, max=65535, help="0: any free port.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("devnet")(devnet)


def devnet(
    directory: Directory = None, chain_id: ChainId = 31337, rpc_port: RpcPort = 8545
) -> None:
    """Run a local chain with contracts, a priced host, a funded renter and a bootstrap node."""
    from nodeapp.cli.interrupt import run_interruptible

    chosen = directory or default_world_dir()
    try:
        run_interruptible(_run(world_options(chosen, chain_id=chain_id, rpc_port=rpc_port)))
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")


def default_world_dir() -> Path:
    """Where `devnet`, `run` and `renter` meet when nothing is said."""
    from nodeapp.service.paths import resolve_paths
    from nodeapp.service.settings import NodeSettings

    return resolve_paths(NodeSettings()).state.with_name("fabstir-devnet")


def world_options(directory: Path, *, chain_id: int, rpc_port: int) -> WorldOptions:
    """A world on what set-up installed.

    Raises:
        Unavailable: anvil is not installed.
    """
    from nodeapp.devnet.anvil import find_anvil
    from nodeapp.devnet.world import WorldOptions
    from nodeapp.prover.profile import cached_profile_dir
    from nodeapp.service.paths import default_cache_dir

    cache = default_cache_dir()
    return WorldOptions(
        directory=directory.absolute(),
        anvil=find_anvil(cache),
        model_path=cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf",
        profile_dir=cached_profile_dir(cache),
        chain_id=chain_id,
        rpc_port=rpc_port,
    )


async def _run(options: WorldOptions) -> None:
    from nodeapp.devnet.world import running_world

    async with running_world(options) as world:
        deployment = world.devnet.deployment
        for line in (
            f"chain {options.chain_id} at {world.devnet.url}",
            f"marketplace {deployment.marketplace}, usdc {deployment.usdc}",
            f"host {world.host_keys.wallet.address}",
            f"renter {world.renter_keys.wallet.address}",
            f"bootstrap {world.bootstrap}",
            f"next: fabstir-node run --config {world.node_file}",
            f"then: fabstir-node renter chat --config {world.renter_file} 'Hello!'",
            "Ctrl-C stops it; the chain's state goes with it",
        ):
            sys.stderr.write(line + "\n")
        await asyncio.Event().wait()
