"""run_service: the life of every process: start -> ready -> drain -> stop, signals, exit code.

Order of stop: stop admitting, drain with a deadline, cancel, close. A failed background task,
a Corrupt error or a failed start ends the process with exit code 1; the supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aiohttp import web

from nodeapp.core.audit import AuditSink, Unrecorded
from nodeapp.core.errors import Corrupt, NodeError, Unavailable, leaves
from nodeapp.service.audit import WITNESSES, AuditLog, audit_file, started, stopped, witness
from nodeapp.service.clock import Clock, SystemClock
from nodeapp.service.logs import configure_logs, get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import Paths, resolve_paths
from nodeapp.service.replicas import FIRST as FIRST_REPLICA
from nodeapp.service.replicas import replica_index, replica_processes
from nodeapp.service.server import AUDIT, errors_to_replies, query, same_user_only
from nodeapp.service.settings import NodeSettings, Section
from nodeapp.wire.ipc import Health, Readiness

DRAIN_SECONDS = 8.0
MAX_BODY_BYTES = 16 << 20
_PR_SET_PDEATHSIG = 1
_log = get_logger(__name__)


@dataclass(slots=True)
class Shell:
    """What a process is built on."""

    process: str
    node: NodeSettings
    paths: Paths
    metrics: Metrics
    clock: Clock
    audit: AuditSink = field(default_factory=Unrecorded)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str = ""
    is_serving: Callable[[], bool] = lambda: True
    """Set by a process that is up and cannot do its work for a while: /readyz says so."""

    def fail(self, reason: str) -> None:
        """Ask for an orderly end with exit code 1."""
        self.failure = self.failure or reason
        self.stopping.set()


class Process(Protocol):
    """One process's own part; built in its main.py."""

    def routes(self) -> Sequence[web.RouteDef]:
        """Its API; answered with 503 until start() has returned."""
        ...

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open everything; background tasks go into `tasks`. Ready when it returns."""
        ...

    def readiness(self) -> str:
        """One line for people: what is served, or what it waits for."""
        ...

    async def drain(self) -> None:
        """No new work comes; finish what is paid for, inside DRAIN_SECONDS."""
        ...

    async def stop(self) -> None:
        """Close everything; called once, also after a failed start."""
        ...


Factory = Callable[[Shell], Process]


def run_service(
    process: str, node: NodeSettings, factory: Factory, section: Section | None = None
) -> int:
    """Run a process until SIGTERM or SIGINT; returns the exit code.

    Args:
        process: its name.
        node: [node].
        factory: builds its own part.
        section: its own settings, for the audit log to say that they are others than before.
    """
    die_with_parent()
    configure_logs(process, node)
    try:
        metrics, paths = process_metrics(process, node.processes), resolve_paths(node)
    except NodeError as error:
        return _cannot_run(error)
    clock = SystemClock()
    audit = AuditLog(audit_file(node, paths.state, process), clock, metrics)
    audit.record(started(node, section, os.getpid()))
    shell = Shell(process, node, paths, metrics, clock, audit)
    failure = "a fault of the program"
    try:
        code = asyncio.run(_run(shell, factory, audit))
        failure = shell.failure
        return code
    except NodeError as error:
        failure = error.message
        return _cannot_run(error)
    finally:
        audit.close(stopped(failure))


def _cannot_run(error: NodeError) -> int:
    _log.error("process cannot run", code=error.code, error=error.message)
    return 1


def process_metrics(process: str, processes: Sequence[str]) -> Metrics:
    """Named after the process; several replicas of one have a label for it instead."""
    replicas = replica_processes(processes)
    if process in replicas and len(replicas) > 1:
        return Metrics(FIRST_REPLICA, {"replica": str(replica_index(process))})
    return Metrics(process)


async def _run(shell: Shell, factory: Factory, audit: AuditLog) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shell.stopping.set)
    for directory in (shell.paths.run, shell.paths.process_state(shell.process)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = factory(shell)
    state = _State(shell, part, audit)
    runner = await _serve(shell, part, state)
    try:
        await _live(shell, part, state)
    except* _Stopped:
        pass
    except* NodeError as group:
        shell.fail("; ".join(error.message for error in leaves(group)))
    finally:
        await part.stop()
        await runner.cleanup()
        shell.paths.socket(shell.process).unlink(missing_ok=True)
    if shell.failure:
        _log.error("process ends", error=shell.failure)
    else:
        _log.info("process ends")
    return 1 if shell.failure else 0


async def _live(shell: Shell, part: Process, state: _State) -> None:
    async with asyncio.TaskGroup() as tasks:
        stop = tasks.create_task(shell.stopping.wait())
        begin = tasks.create_task(part.start(tasks))
        if shell.process in WITNESSES:
            tasks.create_task(witness(shell.audit, shell.paths.state, shell.process, shell.clock))
        await asyncio.wait((stop, begin), return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            # What was imported stays: looking through it again is a pause of 50 to 100 ms.
            gc.freeze()
            state.ready = True
            _log.info("process ready", detail=part.readiness())
            notify_ready()
            await stop
        state.ready = False
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await part.drain()
        except TimeoutError:
            _log.warning("drain deadline passed", seconds=DRAIN_SECONDS)
        raise _Stopped


class _Stopped(Exception):
    """Ends the TaskGroup and cancels what still runs in it."""


@dataclass(slots=True)
class _State:
    shell: Shell
    part: Process
    audit: AuditLog
    ready: bool = False
    started_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.started_seconds = self.shell.clock.monotonic_seconds()

    async def healthz(self) -> Health:
        detail = self.shell.failure or self.audit.trouble or "ok"
        return Health(self.shell.process, not self.shell.failure, detail)

    async def readyz(self) -> Readiness:
        uptime = self.shell.clock.monotonic_seconds() - self.started_seconds
        detail = "; ".join(filter(None, (self.part.readiness(), self.audit.trouble)))
        is_ready = self.ready and self.shell.is_serving()
        return Readiness(self.shell.process, is_ready, detail, os.getpid(), round(uptime, 3))


async def _serve(shell: Shell, part: Process, state: _State) -> web.AppRunner:
    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=shell.metrics.render(), content_type="text/plain")

    @web.middleware
    async def gate(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not state.ready and request.path not in ("/healthz", "/readyz", "/metrics"):
            raise Unavailable(f"{shell.process} is not ready", retry_after_seconds=1)
        try:
            return await handler(request)
        except Corrupt as error:
            shell.fail(error.message)
            raise Unavailable(f"{shell.process} restarts") from error

    app = web.Application(
        middlewares=[errors_to_replies, same_user_only, gate], client_max_size=MAX_BODY_BYTES
    )
    app[AUDIT] = shell.audit
    app.router.add_get("/healthz", query(state.healthz))
    app.router.add_get("/readyz", query(state.readyz))
    app.router.add_get("/metrics", metrics)
    app.router.add_routes(part.routes())
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=2.0)
    await runner.setup()
    await listen_unix(runner, shell.paths.socket(shell.process))
    return runner


async def listen_unix(runner: web.AppRunner, path: Path) -> None:
    """Bind a Unix socket, mode 0660; a stale file of a killed process is replaced."""
    await asyncio.to_thread(path.unlink, missing_ok=True)
    await web.UnixSite(runner, str(path)).start()
    await asyncio.to_thread(path.chmod, 0o660)


def die_with_parent() -> None:
    """SIGKILL me when my parent dies: no orphan outlives the supervisor (Linux prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def notify_ready() -> None:
    """Tell systemd (sd_notify(3)) when it asked for it."""
    _notify(b"READY=1")


def notify_starting(seconds: float) -> None:
    """Tell systemd that the start goes on for up to so long, whatever the unit's limit is."""
    _notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}".encode())


def _notify(message: bytes) -> None:
    from nodeapp.service.config import environment_value

    address = environment_value("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.sendall(message)
