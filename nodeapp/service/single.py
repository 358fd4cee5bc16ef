"""One process of the tree for a moment: for an operator's verb while the node is down.

The tree's lock is held meanwhile, so that no node starts on the same state directory; the process
itself holds the journal. It ends with the block, and with whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
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
STOP_SECONDS = 12.0
POLL_SECONDS = 0.1


@contextlib.asynccontextmanager
async def reachable_process(settings: Settings, process: str) -> AsyncIterator[Path]:
    """The socket of a ready process: the running node's, or one started for this block.

    Raises:
        Unavailable: the node runs but the process does not answer, or it cannot run.
        InvalidRequest: see resolve_paths.
    """
    paths = resolve_paths(settings.node)
    lock = FileLock(paths.state / LOCK_NAME)
    paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock.acquire(f"state directory {paths.state}")
    except Unavailable:
        await _wait_ready(paths, process, None)
        yield paths.socket(process)
        return
    try:
        async with _started(settings, paths, process):
            yield paths.socket(process)
    finally:
        lock.release()


@contextlib.asynccontextmanager
async def _started(settings: Settings, paths: Paths, process: str) -> AsyncIterator[None]:
    command = await asyncio.to_thread(_prepare, settings, paths, process)
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
        await _wait_ready(paths, process, child)
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


async def _wait_ready(paths: Paths, process: str, child: asyncio.subprocess.Process | None) -> None:
    deadline = Deadline.after(START_SECONDS)
    detail = f"{process} does not answer"
    while deadline.remaining_seconds():
        with contextlib.suppress(Unavailable):
            answer = await read_readiness(paths, process)
            if answer.ready:
                return
            detail = answer.detail
        if child is not None and child.returncode is not None:
            words = said(last_log_line(log_file(paths, process)))
            raise Rejected(f"{process} cannot run: {words}")
        await asyncio.sleep(POLL_SECONDS)
    raise Unavailable(f"{process} is not ready after {START_SECONDS:g} s: {detail}")


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
