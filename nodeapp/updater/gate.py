"""The health gate: is a newly started release good enough to stay?

Asked: every program of the tree runs, answers and is the same process for a while; the updater
tells the right version; the state directory can be written; no GPU has gone. Not asked: anything
outside this machine, or a failing network would roll good releases back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nodeapp.core.errors import NodeError
from nodeapp.rpc.updater import UpdaterClient
from nodeapp.service.client import RpcClient
from nodeapp.service.clock import Deadline
from nodeapp.service.paths import Paths
from nodeapp.service.supervisor_client import SupervisorClient
from nodeapp.service.supervisord import supervisor_socket
from nodeapp.store.atomic import write_whole
from nodeapp.wire.ipc import Health

POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0
DEVICES = Path("/dev")


class Gate(Protocol):
    """Who judges a release on trial."""

    async def failure(self, version: str, least_gpus: int) -> str:
        """Why it is not healthy; "" when it is."""
        ...


@dataclass(frozen=True, slots=True)
class TreeGate:
    """The real one."""

    paths: Paths
    seconds: float
    """To become healthy."""
    settle_seconds: float
    """To stay so, with the same processes."""
    devices: Path = DEVICES

    async def failure(self, version: str, least_gpus: int) -> str:
        """Look until it is healthy for long enough, or the time is over."""
        deadline = Deadline.after(self.seconds + self.settle_seconds)
        settled: Deadline | None = None
        known: dict[str, int] = {}
        why = "nothing answers"
        while deadline.remaining_seconds():
            pids, why = await self._look(version, least_gpus)
            if why or pids != known:
                known, settled = pids, None
            if not why and settled is None:
                settled = Deadline.after(self.settle_seconds)
            if settled is not None and not settled.remaining_seconds():
                return ""
            await asyncio.sleep(POLL_SECONDS)
        return why or f"its processes kept restarting for {self.seconds:g} s"

    async def _look(self, version: str, least_gpus: int) -> tuple[dict[str, int], str]:
        try:
            write_whole(self.paths.state / "health-gate", b"writable\n")
            supervisor = SupervisorClient(supervisor_socket(self.paths))
            programs = await asyncio.to_thread(supervisor.programs)
            pids = {program.name: program.pid for program in programs}
            for program in programs:
                if program.state != "RUNNING":
                    return pids, f"{program.name} is {program.state.lower()}"
                await self._ask(program.name)
            return pids, await self._version(version) or gpu_failure(self.devices, least_gpus)
        except NodeError as error:
            return {}, error.message

    async def _ask(self, process: str) -> None:
        async with RpcClient(self.paths.socket(process), process) as client:
            await client.get("/healthz", Health, deadline_seconds=ANSWER_SECONDS)

    async def _version(self, version: str) -> str:
        async with UpdaterClient(self.paths.socket("updater")) as client:
            told = await client.version()
        running = told.slot or told.version
        return "" if running == version else f"{running} runs instead of {version}"


def count_gpus(devices: Path = DEVICES) -> int:
    """GPUs that the kernel driver has made a device for (/dev/nvidia0, …)."""
    return sum(1 for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdigit())


def gpu_failure(devices: Path, least: int) -> str:
    """A driver that does not fit the kernel shows itself here."""
    found = count_gpus(devices)
    return "" if found >= least else f"{found} GPUs are there, {least} were there before"
