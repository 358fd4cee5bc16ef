"""Starts the node from its releases and tries new ones: the boot loader of plain Linux.

    <root>/current/venv/bin/python -m nodeapp.updater.launch --root <root> [--config FILE] …

It runs from the blessed release. A release on trial is started as a child and judged by the
health gate; only then the link `current` is swapped. Whatever happens to the trial - it crashes,
hangs, the power goes - the next start is decided here, by code that was blessed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nodeapp.core.audit import AuditSink, Unrecorded
from nodeapp.core.errors import Corrupt, NodeError, Unavailable
from nodeapp.core.update import (
    TRIAL,
    Bless,
    Effect,
    FallBack,
    GateFailed,
    GatePassed,
    Phase,
    Started,
    TrialBegan,
    UpdateState,
)
from nodeapp.service.audit import direct_audit
from nodeapp.service.config import load_settings
from nodeapp.service.lifecycle import die_with_parent
from nodeapp.service.logs import configure_logs, get_logger
from nodeapp.service.paths import resolve_paths
from nodeapp.updater.gate import Gate, TreeGate
from nodeapp.updater.update_journal import UpdateJournal
from nodeapp.updater.venv import Layout, VenvBackend

STOP_SECONDS = 30.0
_log = get_logger(__name__)


@dataclass(slots=True)
class Launcher:
    """One loop: decide, start, judge, wait."""

    layout: Layout
    gate: Gate
    arguments: Sequence[str]
    """Of `fabstir-node` in the release that is started."""
    audit: AuditSink = field(default_factory=Unrecorded)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> int | None:
        """Until it is told to stop, or the node ends for another reason than an update.

        Returns:
            Exit code; None: a release was blessed, its own launcher is to go on.

        Raises:
            Unavailable: there is no release to start.
        """
        while True:
            version, is_trial = self.decide()
            code = await (self._try(version) if is_trial else self._keep(version))
            if self.stopping.is_set():
                return 0
            if is_trial and self._read().current == version:
                return None
            if self._read().phase not in TRIAL and not is_trial:
                return code

    def decide(self) -> tuple[str, bool]:
        """Which release is started now, and whether on trial; brings the disk into line.

        Raises:
            Unavailable: there is none.
        """
        state = self._read()
        if state.phase in TRIAL and state.candidate is not None:
            if self.layout.is_complete(state.candidate.version):
                state = self._advance(TrialBegan())
            else:
                state = self._advance(GateFailed("it is not on the disk"))
            if state.phase is Phase.BOOTED and state.candidate is not None:
                return state.candidate.version, True
        version = state.current
        if not version or not self.layout.is_complete(version):
            version = self.layout.current_version()
        if not version:
            raise Unavailable(
                f"no release in {self.layout.releases} can be started; install one with "
                "`fabstir-node update apply`"
            )
        if version == state.current:
            self._backend().fall_back(version, "")
        self._advance(Started(version))
        return version, False

    async def _keep(self, version: str) -> int:
        async with _child(self.layout.command(version), self.arguments) as child:
            await self._until_end(child)
            return child.returncode if child.returncode is not None else 1

    async def _try(self, version: str) -> int:
        async with _child(self.layout.command(version), self.arguments) as child:
            failure = await self._judge(version, child)
            if self.stopping.is_set():
                return 0
            if failure:
                _log.error("release is rolled back", version=version, reason=failure)
                await _end(child)
                self._advance(GateFailed(failure))
                return 1
            self._advance(GatePassed())
            _log.info("release is blessed", version=version)
            await self._until_end(child)
            return child.returncode if child.returncode is not None else 1

    async def _judge(self, version: str, child: asyncio.subprocess.Process) -> str:
        """The gate's word, or that the child ended before."""
        least = self._read().gpus
        async with asyncio.TaskGroup() as tasks:
            judged = tasks.create_task(self.gate.failure(version, least))
            ended = tasks.create_task(child.wait())
            stopped = tasks.create_task(self.stopping.wait())
            everything = (judged, ended, stopped)
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for task in everything:
                task.cancel()
        if judged.done() and not judged.cancelled():
            return judged.result()
        return f"it ended with code {child.returncode} before it was healthy"

    async def _until_end(self, child: asyncio.subprocess.Process) -> None:
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(child.wait())
            stopped = tasks.create_task(self.stopping.wait())
            await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            for task in (ended, stopped):
                task.cancel()

    def _read(self) -> UpdateState:
        try:
            return self._journal().read()
        except Corrupt as error:
            # The link is enough to start from; who wrote the journal is asked by `update status`.
            _log.error("update journal is given up", error=error.message)
            return self._journal().begin_again(self.layout.current_version(), error.message)

    def _advance(self, change: Started | TrialBegan | GatePassed | GateFailed) -> UpdateState:
        state, effects = self._journal().advance(change)
        for effect in effects:
            self._carry_out(effect)
        return state

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Bless(version, previous):
                self._backend().bless(version, previous)
            case FallBack(version, failed):
                self._backend().fall_back(version, failed)
            case _:
                raise Corrupt(f"{type(effect).__name__} is not the launcher's work")

    def _journal(self) -> UpdateJournal:
        return UpdateJournal(self.layout.journal, self.audit)

    def _backend(self) -> VenvBackend:
        return VenvBackend(self.layout, _nothing_to_restart)


def _nothing_to_restart() -> None:
    raise Unavailable("the launcher restarts nothing by a verb")


@contextlib.asynccontextmanager
async def _child(
    command: Path, arguments: Sequence[str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        str(command), *arguments, start_new_session=True, preexec_fn=die_with_parent
    )
    try:
        yield child
    finally:
        await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


async def _run(launcher: Launcher) -> int | None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, launcher.stopping.set)
    return await launcher.run()


def main() -> int:
    """Parse, run, tell in one line what stops it."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m nodeapp.updater.launch")
    parser.add_argument("--root", type=Path, required=True, help="directory with the releases")
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args()
    flags = list(given.set)
    if given.state_dir:
        flags.append(f"node.state_dir={given.state_dir.absolute()}")
    try:
        settings = load_settings(given.config, flags=flags)
        configure_logs("launcher", settings.node)
        updater = settings.updater
        gate = TreeGate(
            resolve_paths(settings.node), updater.gate_seconds, updater.gate_settle_seconds
        )
        arguments = ["run"]
        if given.config:
            arguments += ["--config", str(given.config.absolute())]
        for flag in flags:
            arguments += ["--set", flag]
        layout = Layout(given.root.absolute())
        audit = direct_audit(settings.node, "launcher")
        code = asyncio.run(_run(Launcher(layout, gate, arguments, audit=audit)))
    except NodeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    if code is None:
        # The release this code belongs to is removed by the update after the next.
        python = str(layout.current / "venv" / "bin" / "python")
        os.execv(python, [python, "-m", "nodeapp.updater.launch", *sys.argv[1:]])  # noqa: S606
    return code


if __name__ == "__main__":
    sys.exit(main())
