"""One look at a machine: its own files, systemd, and every process that answers at once."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import psutil

import nodeapp
from nodeapp.console.status import Machine, Seen, UnitState
from nodeapp.core.errors import NodeError
from nodeapp.rpc.chain import ChainClient
from nodeapp.rpc.p2p import P2pClient
from nodeapp.rpc.provision import REPORT, read_report
from nodeapp.rpc.update import UpdateClient
from nodeapp.service.needs import closed_port
from nodeapp.service.paths import Paths
from nodeapp.service.settings import Settings
from nodeapp.service.tree import running_processes, tree_status
from nodeapp.wire.ipc_chain import HostView, SessionView
from nodeapp.wire.ipc_p2p import NetworkView
from nodeapp.wire.ipc_update import UpdateView

UNIT = "fabstir-node.service"
PROVISIONING = "fabstir-provision.service"
PATH = "/run/current-system/sw/bin:/usr/bin:/bin"
ASK_SECONDS = 3.0
T = TypeVar("T")


def look_at_machine(*, has_settings: bool, slot: str = "") -> Machine:
    """What is known without the node."""
    return Machine(
        hostname=socket.gethostname(),
        version=nodeapp.__version__,
        slot=slot,
        addresses=tuple(_addresses()),
        has_settings=has_settings,
    )


async def look(
    machine: Machine,
    settings: Settings | None,
    paths: Paths | None,
    *,
    sessions: tuple[SessionView, ...] | None = None,
) -> Seen:
    """Ask everybody; who does not answer inside ASK_SECONDS is left out.

    Args:
        machine: see look_at_machine.
        settings: None: there are none.
        paths: the same.
        sessions: seen a short while ago: the chain process need not list them again.
    """
    report = await asyncio.to_thread(read_report, REPORT)
    unit = await asyncio.to_thread(read_unit, UNIT)
    if settings is None or paths is None:
        # Only who told nothing is asked about.
        ended = UnitState() if report else await asyncio.to_thread(read_unit, PROVISIONING)
        return Seen(machine, unit, report, provisioning=ended)
    processes = await running_processes(paths, settings.node.processes)
    status = tuple(await tree_status(paths, processes))
    answering = {one.process for one in status if one.ready is not None}
    if not answering:
        return Seen(machine, unit, report, status, warning=closed_port(settings))
    async with asyncio.TaskGroup() as tasks:
        update = tasks.create_task(_asked(lambda: _update(paths), "updater" in answering))
        network = tasks.create_task(_asked(lambda: _network(paths), "p2p" in answering))
        host = tasks.create_task(_asked(lambda: _host(paths), "chain" in answering))
        listed = tasks.create_task(
            _asked(lambda: _sessions(paths), sessions is None and "chain" in answering)
        )
    return Seen(
        machine,
        unit,
        report,
        status,
        update=update.result(),
        network=network.result(),
        host=host.result(),
        sessions=sessions if sessions is not None else listed.result(),
        warning=closed_port(settings),
    )


async def _asked(question: Callable[[], Awaitable[T]], is_there: bool) -> T | None:  # noqa: FBT001
    if not is_there:
        return None
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return await question()
    except (NodeError, TimeoutError):
        return None


async def _update(paths: Paths) -> UpdateView:
    async with UpdateClient(paths.socket("updater")) as client:
        return await client.status()


async def _network(paths: Paths) -> NetworkView:
    async with P2pClient(paths.socket("p2p")) as client:
        return await client.network()


async def _host(paths: Paths) -> HostView:
    async with ChainClient(paths.socket("chain")) as client:
        return await client.host()


async def _sessions(paths: Paths) -> tuple[SessionView, ...]:
    async with ChainClient(paths.socket("chain")) as client:
        return tuple((await client.sessions()).sessions)


def _addresses() -> list[str]:
    """Of every card that is up, without loopback and link-local ones."""
    found = []
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        for one in addresses:
            is_ip = one.family in (socket.AF_INET, socket.AF_INET6)
            local = one.address.startswith(("127.", "169.254.", "::1", "fe80:"))
            if name in up and is_ip and not local:
                found.append(one.address)
    return found


def read_unit(name: str) -> UnitState:
    """Empty where systemd does not answer."""
    # A unit of NixOS has no PATH of its own.
    command = ["systemctl", "show", "-p", "LoadState,ActiveState,SubState,NRestarts", name]
    try:
        done = subprocess.run(
            command,
            env={"PATH": PATH},
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return UnitState()
    return unit_state(done.stdout if done.returncode == 0 else "")


def unit_state(text: str) -> UnitState:
    """`systemctl show`'s lines as a state; empty for a unit that is not there."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if values.get("LoadState") == "not-found":
        return UnitState()
    restarts = values.get("NRestarts", "")
    return UnitState(
        values.get("ActiveState", ""),
        values.get("SubState", ""),
        int(restarts) if restarts.isdigit() else 0,
    )


def active_consoles(listing: Path = Path("/sys/class/tty/console/active")) -> list[Path]:
    """Screen and serial lines that the kernel talks to; the screen is its first terminal."""
    try:
        names = listing.read_text("ascii").split()
    except OSError:
        return []
    return [Path("/dev") / ("tty1" if name == "tty0" else name) for name in names]
