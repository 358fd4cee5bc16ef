"""One process of the tree for a moment: for an operator's verb while the node is down.

The tree's lock is held meanwhile, so that no node starts on the same state directory; the process
itself holds the journal. It ends with the block, and with whoever started it. For a verb that only
reads it makes no journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.service.clock import Deadline
from nodeapp.service.config import process_environment
from nodeapp.service.lifecycle import die_with_parent
from nodeapp.service.paths import Paths, resolve_paths
from nodeapp.service.settings import Settings
from nodeapp.service.supervisord import (
    PROGRAMS,
    log_file,
    own_options,
    process_settings,
    program_name,
    settings_file,
)
from nodeapp.service.tree import (
    KEPT_VARIABLES,
    LOCK_NAME,
    SOURCE_ROOT,
    last_log_line,
    read_readiness,
    said,
)
from nodeapp.store.lock import FileLock

START_SECONDS = 60.0
READ_SECONDS = 15.0
"""Of them for a verb that only reads, once the reason is known: it leaves nothing half done."""
STOP_SECONDS = 12.0
POLL_SECONDS = 0.1
STARTING = "starting"
"""What a process says before it knows more."""
READ_ONLY = "--read-only"
"""Option of a process that is started to be asked only."""
ONLY_READS = "only reads"
"""Part of such a process's readiness line."""


def _say_nothing(_text: str) -> None:
    pass


def _refuse_nothing(_state: Path) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Manner:
    """How a verb reaches a process."""

    only_reads: bool = False
    tell: Callable[[str], None] = _say_nothing
    """Given why the process is not ready, each time that changes."""
    before_start: Callable[[Path], None] = _refuse_nothing
    """Given the state directory before a process is started on it; raises to refuse."""


PLAIN = Manner()


@contextlib.asynccontextmanager
async def reachable_process(
    settings: Settings, process: str, manner: Manner = PLAIN
) -> AsyncIterator[Path]:
    """The socket of a ready process: the running node's, or one started for this block.

    Raises:
        Unavailable: the node runs but the process does not answer, or it cannot run.
        Rejected: the state directory is another user's.
        InvalidRequest: see resolve_paths.
    """
    paths = resolve_paths(settings.node)
    lock = FileLock(paths.state / LOCK_NAME)
    if not _was_used(paths):
        manner.before_start(paths.state)
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not await _is_ours(lock, paths, process, manner):
        yield paths.socket(process)
        return
    try:
        manner.before_start(paths.state)
        own = await asyncio.to_thread(_with_own_run_dir, paths)
        async with _started(settings, own, process, manner):
            yield own.socket(process)
    finally:
        lock.release()


def _was_used(paths: Paths) -> bool:
    """Whether there was ever a node on it.

    Raises:
        Rejected: this user may not look.
    """
    try:
        return (paths.state / LOCK_NAME).exists()
    except PermissionError as error:
        raise _closed(paths) from error


def _with_own_run_dir(paths: Paths) -> Paths:
    """Systemd takes /run/NAME away with the unit, and the account cannot make it again."""
    try:
        paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError:
        return replace(paths, run=paths.state / "run")
    return paths


def _closed(paths: Paths) -> Rejected:
    return Rejected(
        f"state directory {paths.state} is closed to this user; run this as its owner:"
        " sudo -u OWNER fabstir-node …"
    )


@contextlib.asynccontextmanager
async def _started(
    settings: Settings, paths: Paths, process: str, manner: Manner
) -> AsyncIterator[None]:
    command = await asyncio.to_thread(_prepare, settings, paths, process)
    command += [READ_ONLY] if manner.only_reads else []
    log = await asyncio.to_thread(log_file(paths, process).open, "ab")
    with log:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=process_environment(KEPT_VARIABLES),
            cwd=SOURCE_ROOT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        await _wait_ready(paths, process, child, manner)
        yield
    finally:
        await _end(child)
        paths.socket(process).unlink(missing_ok=True)


def _prepare(settings: Settings, paths: Paths, process: str) -> list[str]:
    file = settings_file(paths, process)
    for directory in (paths.run, paths.log, file.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(process_settings(settings, process, paths), "utf-8")
    module = PROGRAMS[program_name(process)].module
    return [sys.executable, "-m", module, "--config", str(file), *own_options(process)]


async def _is_ours(lock: FileLock, paths: Paths, process: str, manner: Manner) -> bool:
    """Hold the state directory; False: whoever holds it has the process ready for us."""
    patience = _Patience(process, manner)
    while True:
        try:
            lock.acquire(f"state directory {paths.state}")
        except PermissionError as error:
            raise _closed(paths) from error
        except Unavailable:
            if await patience.is_ready(paths):
                return False
            await patience.wait()
        else:
            return True


async def _wait_ready(
    paths: Paths, process: str, child: asyncio.subprocess.Process, manner: Manner
) -> None:
    patience = _Patience(process, manner)
    while not await patience.is_ready(paths):
        if child.returncode is not None:
            words = said(last_log_line(log_file(paths, process)))
            raise Rejected(f"{process} cannot run: {words}")
        await patience.wait()


class _Patience:
    """Until a process is ready: tells why it is not, and ends."""

    def __init__(self, process: str, manner: Manner) -> None:
        self._process = process
        self._manner = manner
        self._seconds = START_SECONDS
        self._deadline = Deadline.after(START_SECONDS)
        self._detail = ""
        self._told = STARTING

    async def is_ready(self, paths: Paths) -> bool:
        """Whether it can be asked what we want to ask."""
        with contextlib.suppress(Unavailable):
            answer = await read_readiness(paths, self._process)
            # Another command's, which ends with that.
            is_for_us = self._manner.only_reads or ONLY_READS not in answer.detail
            self._detail = answer.detail if is_for_us else "another command asks it"
            return answer.ready and is_for_us
        return False

    async def wait(self) -> None:
        """A moment.

        Raises:
            Unavailable: it took too long.
        """
        if self._detail not in {"", self._told, STARTING}:
            if self._manner.only_reads and self._told == STARTING:
                self._seconds, self._deadline = READ_SECONDS, Deadline.after(READ_SECONDS)
            self._told = self._detail
            left = self._deadline.remaining_seconds()
            self._manner.tell(
                f"{self._process} is not ready: {self._detail}; waiting {left:.0f} s at most"
            )
        if not self._deadline.remaining_seconds():
            raise Unavailable(
                f"{self._process} is not ready after {self._seconds:g} s:"
                f" {self._detail or 'it does not answer'}"
            )
        await asyncio.sleep(POLL_SECONDS)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
