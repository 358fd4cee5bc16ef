"""A running supervisor tree: start it, wait for readiness, stop it, leave nothing behind.

The state directory's lock is held by whoever runs the tree and by supervisord itself, so a
second tree on it is refused even when only supervisord is left. Every process of the tree dies
with its parent: killing supervisord is the last resort that always works.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import psutil

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.service.client import RpcClient
from nodeapp.service.clock import Deadline
from nodeapp.service.config import CREDENTIALS_VARIABLE, process_environment
from nodeapp.service.lifecycle import die_with_parent
from nodeapp.service.paths import Paths, resolve_paths
from nodeapp.service.replicas import FIRST as FIRST_REPLICA
from nodeapp.service.replicas import is_further_replica, replica_index, replica_processes
from nodeapp.service.settings import Settings
from nodeapp.service.supervisor_client import ProgramState, SupervisorClient
from nodeapp.service.supervisord import (
    WATCHDOG,
    Tree,
    log_file,
    process_settings,
    render_supervisord,
    settings_file,
    supervisor_file,
    supervisor_socket,
)
from nodeapp.store.atomic import write_whole
from nodeapp.store.lock import FileLock
from nodeapp.wire.ipc import Readiness

POLL_SECONDS = 0.1
STOP_SECONDS = 14.0
KEPT_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    CREDENTIALS_VARIABLE,
)
"""Everything else stays out: settings travel in files, secrets as paths."""
LOG_TAIL_BYTES = 4000
LOCK_NAME = "node.lock"
MAX_TRIES = 4
"""A process that ended so often while the others were waited for will not get better."""
SOURCE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process as seen from outside; `ready` is None when it does not answer."""

    process: str
    state: str
    pid: int
    ready: bool | None
    detail: str
    uptime_seconds: float


Report = Callable[[ProcessStatus], None]


@dataclass(slots=True)
class NodeTree:
    """A started tree. Make it with `start_tree`; always end with `stop`."""

    paths: Paths
    processes: tuple[str, ...]
    supervisor: asyncio.subprocess.Process
    _lock: FileLock
    _seen: dict[int, float] = field(default_factory=dict)

    @property
    def client(self) -> SupervisorClient:
        """Supervisord's control side."""
        return SupervisorClient(supervisor_socket(self.paths))

    async def wait_ready(
        self, *, deadline_seconds: float, report: Report | None = None, may_wait: bool = False
    ) -> str:
        """Return when every process is ready; a replica may fail where another one runs.

        Args:
            deadline_seconds: for all of them together.
            report: called once a process, when it becomes ready or is waited for no longer.
            may_wait: who answers by the deadline may wait on, for the world or for a large model.

        Returns:
            Who waits on, and for what; empty when all are ready.

        Raises:
            Unavailable: the deadline passed or a process cannot run; names it and its last words.
        """
        deadline = Deadline.after(deadline_seconds)
        waiting = dict.fromkeys(self.processes, "")
        tries: dict[str, set[int]] = {process: {0} for process in self.processes}
        failed: set[str] = set()
        silent: set[str] = set()
        report = report or _say_nothing
        why = ""
        while waiting:
            found = await tree_status(self.paths, self.processes)
            silent = {status.process for status in found if status.ready is None}
            for status in found:
                tries[status.process].add(status.pid)
                if status.process in waiting and not status.ready:
                    waiting[status.process] = status.detail
                elif status.process in waiting:
                    del waiting[status.process]
                    report(status)
                if status.process not in failed and _has_failed(status, tries[status.process]):
                    failed.add(status.process)
                    waiting.pop(status.process, None)
                    report(self._done_without(status, failed))
            self._check_supervisor()
            if waiting and not deadline.remaining_seconds():
                why = "; ".join(f"{name} ({waiting[name]})" for name in sorted(waiting))
                if not may_wait or silent & waiting.keys():
                    raise Unavailable(f"not ready inside {deadline_seconds:g} s: {why}")
                break
            await asyncio.sleep(POLL_SECONDS if waiting else 0)
        self._remember()
        return why

    async def stop(self) -> list[int]:
        """Stop in order, at most STOP_SECONDS, then kill.

        Returns:
            Process ids of this tree that are still alive (empty, unless the kernel is at fault).
        """
        self._remember()
        if self.supervisor.returncode is None:
            self.supervisor.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.supervisor.wait()
            except TimeoutError:
                self._remember()
                self.supervisor.kill()
                await self.supervisor.wait()
        left = await asyncio.to_thread(self._end_leftovers)
        # Whoever was killed could not take its socket away.
        for stale in (*self.paths.run.glob("*.sock"), self.paths.run / "supervisord.pid"):
            stale.unlink(missing_ok=True)
        self._lock.release()
        return left

    def pids(self) -> list[int]:
        """Process ids of the tree that live now, supervisord first."""
        try:
            root = psutil.Process(self.supervisor.pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def _done_without(self, status: ProcessStatus, failed: set[str]) -> ProcessStatus:
        """The node goes on while another replica is left; the watchdog tries this one again."""
        words = f"cannot run: {self._last_words(status)}"
        if not failed < set(replica_processes(self.processes)):
            raise Unavailable(f"{status.process} {words}")
        return replace(status, detail=words)

    def _check_supervisor(self) -> None:
        if self.supervisor.returncode is not None:
            # What it says before it has a log, and its hint about options, are in the other file.
            said = _last_lines(self.paths.log / "supervisord.out")
            errors = [line for line in said if line.startswith("Error: ")]
            why = errors[-1] if errors else last_log_line(self.paths.log / "supervisord.log")
            raise Unavailable(f"supervisord ended with code {self.supervisor.returncode}: {why}")

    def _remember(self) -> None:
        for pid in self.pids():
            try:
                self._seen[pid] = psutil.Process(pid).create_time()
            except psutil.NoSuchProcess:
                continue

    def _end_leftovers(self) -> list[int]:
        alive = [process for process in map(self._still_there, self._seen) if process is not None]
        # Death with the parent is delivered at once, but its file handles close a moment later.
        _gone, alive = psutil.wait_procs(alive, timeout=1.0)
        for process in alive:
            process.kill()
        _gone, alive = psutil.wait_procs(alive, timeout=2.0)
        return [process.pid for process in alive]

    def _still_there(self, pid: int) -> psutil.Process | None:
        try:
            process = psutil.Process(pid)
            same = process.create_time() == self._seen[pid]
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def _last_words(self, status: ProcessStatus) -> str:
        return said(last_log_line(log_file(self.paths, status.process))) or status.detail


def _has_failed(status: ProcessStatus, pids: set[int]) -> bool:
    return not status.ready and (status.state == "FATAL" or len(pids) > MAX_TRIES)


def _say_nothing(_status: ProcessStatus) -> None:
    pass


def refuse_if_running(settings: Settings) -> None:
    """Tell at once, before ports and files are looked at, that this node runs already.

    Raises:
        Rejected: another tree runs on this state directory.
    """
    paths = resolve_paths(settings.node)
    if (paths.state / LOCK_NAME).exists():
        _take_lock(paths).release()


def _take_lock(paths: Paths) -> FileLock:
    lock = FileLock(paths.state / LOCK_NAME)
    try:
        lock.acquire(f"state directory {paths.state}")
    except Unavailable as error:
        raise Rejected(error.message) from error
    return lock


async def start_tree(settings: Settings, *, source: Path | None = None) -> NodeTree:
    """Write the files and start supervisord; returns before the processes are ready.

    Raises:
        Rejected: another tree runs on this state directory.
        Unavailable: supervisord cannot be started.
    """
    paths = resolve_paths(settings.node)
    processes = tuple(settings.node.processes)
    lock = _take_lock(paths)
    try:
        root = source or SOURCE_ROOT
        _write_files(settings, Tree(paths, Path(sys.executable), root, processes))
        supervisor = await _spawn(paths, root, lock)
    except BaseException:
        lock.release()
        raise
    return NodeTree(paths, processes, supervisor, lock)


def _write_files(settings: Settings, tree: Tree) -> None:
    paths = tree.paths
    for directory in (paths.state, paths.run, paths.log, paths.state / "conf"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for process in (*tree.processes, WATCHDOG):
        text = process_settings(settings, process, tree.paths)
        write_whole(settings_file(tree.paths, process), text.encode(), mode=0o600)
    write_whole(supervisor_file(tree.paths), render_supervisord(tree).encode(), mode=0o600)
    for stale in tree.paths.run.glob("*.sock"):
        stale.unlink()


async def _spawn(paths: Paths, root: Path, lock: FileLock) -> asyncio.subprocess.Process:
    output = await asyncio.to_thread((paths.log / "supervisord.out").open, "wb")
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "supervisor.supervisord",
            "--nodaemon",
            "--configuration",
            str(supervisor_file(paths)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=process_environment(KEPT_VARIABLES),
            cwd=root,
            # Ctrl-C in the terminal is for us: we stop the tree in order.
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        raise Unavailable(f"supervisord cannot be started: {error}") from error
    finally:
        output.close()


async def tree_status(paths: Paths, processes: tuple[str, ...]) -> list[ProcessStatus]:
    """Supervisord's word and every process's own /readyz, side by side."""
    try:
        client = SupervisorClient(supervisor_socket(paths))
        programs = {item.name: item for item in await asyncio.to_thread(client.programs)}
    except Unavailable:
        programs = {}
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_one_status(paths, name, programs.get(name))) for name in processes
        ]
    return [task.result() for task in running]


async def running_processes(paths: Paths, processes: tuple[str, ...]) -> tuple[str, ...]:
    """The processes of the settings, and the replicas that the running tree has beside them."""
    try:
        programs = await asyncio.to_thread(SupervisorClient(supervisor_socket(paths)).programs)
    except Unavailable:
        return processes
    further = [one.name for one in programs if is_further_replica(one.name)]
    missing = sorted(set(further) - set(processes), key=lambda name: replica_index(name) or 0)
    place = processes.index(FIRST_REPLICA) + 1 if FIRST_REPLICA in processes else 0
    return (*processes[:place], *missing, *processes[place:])


async def _one_status(paths: Paths, process: str, program: ProgramState | None) -> ProcessStatus:
    state = program.state if program else "UNKNOWN"
    pid = program.pid if program else 0
    try:
        answer = await read_readiness(paths, process)
    except Unavailable as error:
        detail = program.description if program else error.message
        return ProcessStatus(process, state, pid, None, detail, 0.0)
    return ProcessStatus(
        process, state, answer.pid, answer.ready, answer.detail, answer.uptime_seconds
    )


async def read_readiness(paths: Paths, process: str, *, seconds: float = 2.0) -> Readiness:
    """A process's own answer.

    Raises:
        Unavailable: it does not answer.
    """
    async with RpcClient(paths.socket(process), process) as client:
        return await client.get("/readyz", Readiness, deadline_seconds=seconds)


def said(line: str) -> str:
    """What a log line tells a person: its error, or its event, or itself when it is not JSON."""
    try:
        entry = msgspec.json.decode(line, type=_LogEntry)
    except msgspec.DecodeError:
        return line
    return entry.error or entry.event or line


class _LogEntry(msgspec.Struct, frozen=True):
    error: str = ""
    event: str = ""


def last_log_line(path: Path) -> str:
    """The last line a process wrote, "" when there is none."""
    lines = _last_lines(path)
    return lines[-1] if lines else ""


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return []
