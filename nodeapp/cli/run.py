"""fabstir-node run: the whole tree in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, settings_of

if TYPE_CHECKING:
    from nodeapp.service.settings import Settings
    from nodeapp.service.tree import NodeTree, ProcessStatus

READY_SECONDS = 120.0

ReadySeconds = Annotated[
    float, typer.Option("--ready-seconds", min=1, help="Give up on what does not answer by then.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    ready_seconds: ReadySeconds = READY_SECONDS,
) -> None:
    """Start every process, wait until all are ready or wait for the world, stay until Ctrl-C."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.preflight import check_settings
    from nodeapp.service.tree import refuse_if_running

    settings = settings_of(config, state_dir, flags)
    refuse_if_running(settings)
    check_settings(settings)
    outcome = _Outcome()
    try:
        run_interruptible(keep_running(settings, ready_seconds, outcome))
    except KeyboardInterrupt:
        if not outcome.was_ready:
            sys.stderr.write("interrupted before the node was ready\n")
            raise
        # Being told to stop is how a node ends; systemd expects 0.
        sys.stderr.write("stopped\n")


class _Outcome:
    was_ready = False


async def keep_running(settings: Settings, ready_seconds: float, outcome: _Outcome) -> None:
    """Hold the tree up; cancellation stops it in order.

    Raises:
        Rejected: another node runs on this state directory.
        Unavailable: a process cannot run, or supervisord ended by itself.
        NotFound: inference.model_source has no such model; fetch_model has more.
    """
    import asyncio

    from nodeapp.cli.first_start import fetch_model
    from nodeapp.core.errors import Unavailable
    from nodeapp.inference.nvml import NvmlInventory
    from nodeapp.inference.replicas import with_devices
    from nodeapp.service.config import environment_value
    from nodeapp.service.lifecycle import notify_ready
    from nodeapp.service.tree import start_tree

    await fetch_model(settings)
    visible = environment_value("CUDA_VISIBLE_DEVICES")
    dealt = await asyncio.to_thread(with_devices, settings, NvmlInventory(), visible)
    tree = await start_tree(dealt)
    try:
        # A chain that is down, or a host not yet registered, is no reason to stop the others.
        why = await tree.wait_ready(deadline_seconds=ready_seconds, report=show, may_wait=True)
        outcome.was_ready = True
        notify_ready()
        word = f"node runs, but is not ready: {why}" if why else "node ready"
        sys.stderr.write(f"{word}; state in {tree.paths.state}; Ctrl-C stops it\n")
        code = await tree.supervisor.wait()
        raise Unavailable(f"supervisord ended by itself with code {code}")
    finally:
        await stop_and_tell(tree)


async def stop_and_tell(tree: NodeTree) -> None:
    """Stop the tree and say so if something could not be ended."""
    sys.stderr.write("stopping\n")
    left = await tree.stop()
    if left:
        sys.stderr.write(f"error: still alive: {', '.join(map(str, left))}\n")


def show(status: ProcessStatus) -> None:
    """One line for a process that became ready, or that the node starts without."""
    word = "ready" if status.ready else "failed"
    sys.stderr.write(f"  {word:<6} {status.process:<10} {status.detail}\n")
