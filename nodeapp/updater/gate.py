"""The health gate: is a newly started release good enough to stay?

Asked: every program of the tree runs, is ready - the model is loaded - and is the same process for
a while; the updater tells the right version; the state directory can be written; no GPU has gone.
Not asked: anything outside this machine, or a failing network would roll good releases back. So
chain and p2p must answer, and may wait for the world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

from nodeapp.core.errors import NodeError
from nodeapp.rpc.inference import InferenceClient
from nodeapp.rpc.updater import UpdaterClient
from nodeapp.service.chains import chain_processes
from nodeapp.service.client import RpcClient
from nodeapp.service.clock import Deadline
from nodeapp.service.paths import Paths
from nodeapp.service.replicas import FIRST as INFERENCE
from nodeapp.service.supervisor_client import SupervisorClient
from nodeapp.service.supervisord import supervisor_socket
from nodeapp.store.atomic import write_whole
from nodeapp.wire.ipc import Health, Readiness

POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0
GPU_SECONDS = 8.0
"""A little more than a driver is given."""


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
                if why := await self._ask(program.name):
                    return pids, why
            return pids, await self._version(version) or await self._gpus(pids, least_gpus)
        except NodeError as error:
            return {}, error.message

    async def _ask(self, process: str) -> str:
        async with RpcClient(self.paths.socket(process), process) as client:
            if process == "p2p" or chain_processes((process,)):
                await client.get("/healthz", Health, deadline_seconds=ANSWER_SECONDS)
                return ""
            found = await client.get("/readyz", Readiness, deadline_seconds=ANSWER_SECONDS)
        return "" if found.ready else f"{process} is not ready: {found.detail}"

    async def _version(self, version: str) -> str:
        async with UpdaterClient(self.paths.socket("updater")) as client:
            told = await client.version()
        running = told.slot or told.version
        return "" if running == version else f"{running} runs instead of {version}"

    async def _gpus(self, processes: Container[str], least: int) -> str:
        """Where the driver does not fit the kernel its devices are there, and none answers."""
        if not least:
            return ""
        found = await answering_gpus(self.paths) if INFERENCE in processes else 0
        return "" if found >= least else f"{found} GPUs answer, {least} did before"


async def answering_gpus(paths: Paths) -> int:
    """As the inference process sees them.

    Raises:
        Unavailable: it does not answer, or the driver does not answer it.
    """
    async with InferenceClient(paths.socket(INFERENCE)) as inference:
        return (await inference.gpus(deadline_seconds=GPU_SECONDS)).answering
