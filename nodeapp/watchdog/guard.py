"""The two tasks of the watchdog: hear supervisord's events, probe every process.

Standard output belongs to the event protocol; everything else goes to standard error.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from aiohttp import web

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.service.client import RpcClient
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.settings import WatchdogSettings
from nodeapp.service.supervisor_client import SupervisorClient
from nodeapp.service.supervisord import WATCHDOG, supervisor_socket
from nodeapp.watchdog.events import DONE, MAX_HEADER_BYTES, READY, parse_header, parse_process_event
from nodeapp.watchdog.policy import Effect, Kill, Probed, Start, WatchState, apply
from nodeapp.wire.ipc import Health

_log = get_logger(__name__)


class Watchdog:
    """The process's own part for run_service."""

    def __init__(self, shell: Shell, settings: WatchdogSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._supervisor = SupervisorClient(supervisor_socket(shell.paths))
        self._state = WatchState(settings.misses)
        self._silent: tuple[str, ...] | None = None
        self._kills = shell.metrics.counter("kills_total", "silent processes killed", ("process",))
        self._exits = shell.metrics.counter("exits_total", "unexpected exits", ("process",))

    def routes(self) -> Sequence[web.RouteDef]:
        """None besides health."""
        return ()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to listen and to probe."""
        tasks.create_task(self._listen(), name="events")
        tasks.create_task(self._probe_forever(), name="probes")

    def readiness(self) -> str:
        """Who is silent."""
        if self._silent is None:
            return "has not looked yet"
        return f"silent: {', '.join(self._silent)}" if self._silent else "everyone answers"

    async def drain(self) -> None:
        """Nothing to finish."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def _listen(self) -> None:
        reader = asyncio.StreamReader(limit=MAX_HEADER_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
        while True:
            _say(READY)
            line = await reader.readline()
            if not line:
                _log.info("supervisord closed the event channel")
                self._shell.stopping.set()
                return
            header = parse_header(line)
            body = await reader.readexactly(header.body_bytes)
            event = parse_process_event(header, body)
            if event.state == "FATAL":
                _log.error("process given up by supervisord", target=event.process)
            elif event.state == "EXITED" and not event.expected:
                self._exits.labels(event.process).inc()
                _log.warning("process ended by itself", target=event.process)
            _say(DONE)

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.probe_seconds)
            try:
                await self._probe_all()
            except Unavailable as error:
                _log.warning("supervisord does not answer", error=error.message)

    async def _probe_all(self) -> None:
        if not await asyncio.to_thread(self._supervisor.is_running):
            return
        programs = await asyncio.to_thread(self._supervisor.programs)
        targets = [program for program in programs if program.name != WATCHDOG]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._answers(program.name)) for program in targets]
        now = self._shell.clock.monotonic_seconds()
        silent = tuple(
            program.name for program, task in zip(targets, asked, strict=True) if not task.result()
        )
        for program in targets:
            look = Probed(program.name, program.state, program.pid, program.name not in silent)
            self._state, effects = apply(self._state, look, now)
            for effect in effects:
                await self._carry_out(effect)
        self._silent = silent

    async def _answers(self, process: str) -> bool:
        seconds = self._settings.probe_timeout_seconds
        try:
            async with RpcClient(self._shell.paths.socket(process), process) as client:
                await client.get("/healthz", Health, deadline_seconds=seconds)
        except NodeError:
            return False
        return True

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Kill(process, misses):
                self._kills.labels(process).inc()
                _log.error("process is silent and gets killed", target=process, misses=misses)
                await asyncio.to_thread(self._supervisor.kill, process)
            case Start(process):
                _log.warning("process is tried again after quarantine", target=process)
                await asyncio.to_thread(self._supervisor.start, process)


def _say(message: bytes) -> None:
    sys.stdout.buffer.write(message)
    sys.stdout.buffer.flush()
