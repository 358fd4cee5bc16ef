"""The updater's part that updates the node itself: rounds, verbs, what it needs of the others."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from nodeapp.core.errors import InvalidRequest, NodeError, NotFound, Rejected, Unavailable
from nodeapp.core.update import UpdateState
from nodeapp.core.window import seconds_until
from nodeapp.rpc.p2p import P2pClient
from nodeapp.rpc.update import ALLOW, APPLY, CHECK, HOLD, ROLLBACK, STATUS
from nodeapp.service.clock import Clock
from nodeapp.service.download import Progress
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.paths import Paths
from nodeapp.service.replicas import FIRST as INFERENCE
from nodeapp.service.server import endpoint, operator, query
from nodeapp.service.settings import UpdaterSettings
from nodeapp.service.supervisor_client import SupervisorClient
from nodeapp.service.supervisord import supervisor_socket
from nodeapp.updater.backend import UpdateBackend
from nodeapp.updater.channel import Channel, expiry_warning
from nodeapp.updater.gate import answering_gpus
from nodeapp.updater.nixos import NixosBackend
from nodeapp.updater.sysupdate import SysupdateBackend
from nodeapp.updater.update_flow import NodeVerbs, UpdateFlow
from nodeapp.updater.update_journal import FILE_NAME, UpdateJournal
from nodeapp.updater.venv import Layout, VenvBackend
from nodeapp.updater.version import running_version
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_update import AllowRequest, HoldRequest, RefusedView, UpdateView

FIRST_LOOK_SECONDS = 120
LAST_FIRST_LOOK_SECONDS = 600
"""After a start: nodes that a power cut ended together do not all come at once."""
_log = get_logger(__name__)


def releases_dir(settings: UpdaterSettings, paths: Paths) -> Path:
    """Where the venv back end keeps its releases."""
    return Path(settings.releases_dir or paths.state / "releases").absolute()


def downloads_dir(settings: UpdaterSettings, paths: Paths) -> Path:
    """Where releases are fetched to; on the image root's helper looks there, and only there.

    Outside the state there: its snapshots would keep gigabytes of what was removed. Elsewhere the
    cache may be shared by several nodes.
    """
    is_image = settings.backend == "sysupdate"
    return (paths.cache if is_image else paths.process_state("updater")) / "downloads"


def journal_path(settings: UpdaterSettings, paths: Paths) -> Path:
    """Beside the releases, where the launcher finds it without the settings; else in the state."""
    if settings.backend == "venv":
        return Layout(releases_dir(settings, paths)).journal
    return paths.process_state("updater") / FILE_NAME


def channel_warning(settings: UpdaterSettings, paths: Paths, clock: Clock) -> str:
    """That the channel will end soon; "" when it will not, or there is none."""
    if not settings.repository_url:
        return ""
    return expiry_warning(_tuf_dir(paths), clock.unix_seconds())


def _tuf_dir(paths: Paths) -> Path:
    return paths.process_state("updater") / "tuf"


def view_of(
    state: UpdateState,
    settings: UpdaterSettings,
    running: str,
    progress: Progress,
    warning: str = "",
) -> UpdateView:
    """How it stands; `running` is "" when nothing runs."""
    release = state.available or state.candidate
    return UpdateView(
        backend=settings.backend,
        channel=settings.channel,
        phase=state.phase,
        running=running,
        current=state.current,
        available=state.available.version if state.available else "",
        notes=release.notes if release else "",
        candidate=state.candidate.version if state.candidate else "",
        previous=state.previous,
        is_held=state.is_held,
        reason=state.reason,
        blacklist=tuple(RefusedView(one.version, one.reason) for one in state.blacklist),
        tries_left=state.tries_left,
        downloaded_bytes=progress.done,
        download_bytes=progress.total,
        warning=warning,
    )


class Updates:
    """Answers with InvalidRequest what needs a back end when there is none."""

    def __init__(
        self, shell: Shell, settings: UpdaterSettings, snapshot: Callable[[], Awaitable[object]]
    ) -> None:
        self._shell = shell
        self._settings = settings
        self._snapshot = snapshot
        self._held = shell.metrics.gauge("update_held", "1: updates are held")
        self._ends = shell.metrics.counter("update_checks_total", "by outcome", ("outcome",))
        self._flow = self._make_flow() if settings.backend != "none" else None

    def routes(self) -> Sequence[web.RouteDef]:
        """What rpc/update.py calls."""
        return [
            web.get(STATUS, query(self._status)),
            web.post(CHECK, operator(endpoint(Empty, self._check))),
            web.post(APPLY, operator(endpoint(Empty, self._apply))),
            web.post(ROLLBACK, operator(endpoint(Empty, self._rollback))),
            web.post(HOLD, operator(endpoint(HoldRequest, self._hold))),
            web.post(ALLOW, operator(endpoint(AllowRequest, self._allow))),
        ]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """End what an interruption left open; work and look for releases in the background."""
        if self._flow is None:
            return
        await self._flow.start()
        tasks.create_task(self._flow.run(), name="update")
        if self._settings.repository_url:
            tasks.create_task(self._rounds(self._flow), name="update checks")

    def summary(self) -> str:
        """For the readiness line; "" when nobody needs to know."""
        if self._flow is None:
            return ""
        state = self._flow.state()
        available = f"release {state.available.version} is available" if state.available else ""
        warning = channel_warning(self._settings, self._shell.paths, self._shell.clock)
        return "; ".join(filter(None, (state.reason or available, warning)))

    async def _rounds(self, flow: UpdateFlow) -> None:
        spread = secrets.randbelow(LAST_FIRST_LOOK_SECONDS - FIRST_LOOK_SECONDS + 1)
        pause = min(FIRST_LOOK_SECONDS + spread, self._settings.check_interval_seconds)
        while True:
            await asyncio.sleep(pause)
            pause = self._settings.check_interval_seconds
            try:
                state = await flow.check()
                if state.available and self._settings.apply_automatically and not state.is_held:
                    closed_seconds = self._closed_seconds()
                    if closed_seconds:
                        pause = min(pause, closed_seconds)
                    else:
                        await flow.apply(self._why_not_now)
            except NodeError as error:
                self._ends.labels("failed").inc()
                _log.warning("no check for updates", error=error.message)
            else:
                self._ends.labels("done").inc()

    def _closed_seconds(self) -> float:
        return seconds_until(self._settings.window, self._shell.clock.unix_seconds())

    def _why_not_now(self) -> str:
        if not self._closed_seconds():
            return ""
        return (
            f"the time to restart in, {self._settings.window} UTC, is over: it waits for the next"
        )

    async def _status(self) -> UpdateView:
        state = self._flow.state() if self._flow else UpdateState(current="")
        progress = self._flow.progress if self._flow else Progress(0, 0, 0)
        self._held.set(int(state.is_held))
        warning = await asyncio.to_thread(
            channel_warning, self._settings, self._shell.paths, self._shell.clock
        )
        return view_of(state, self._settings, running_version().version, progress, warning)

    async def _check(self, _message: Empty) -> UpdateView:
        await self._required().check()
        return await self._status()

    async def _apply(self, _message: Empty) -> UpdateView:
        await self._required().apply()
        return await self._status()

    async def _rollback(self, _message: Empty) -> UpdateView:
        await self._required().rollback()
        return await self._status()

    async def _hold(self, message: HoldRequest) -> UpdateView:
        await self._required().hold(is_held=message.is_held)
        return await self._status()

    async def _allow(self, message: AllowRequest) -> UpdateView:
        await self._required().allow(message.version)
        return await self._status()

    def _required(self) -> UpdateFlow:
        if self._flow is None:
            raise InvalidRequest(
                "this node is updated by whoever installed it; updater.backend names another way"
            )
        if not (self._settings.repository_url and self._settings.trusted_root_file):
            raise InvalidRequest("updater.repository_url and updater.trusted_root_file are not set")
        return self._flow

    def _make_flow(self) -> UpdateFlow:
        settings, paths = self._settings, self._shell.paths
        root, directory = Path(settings.trusted_root_file), _tuf_dir(paths)
        channel = Channel(settings.repository_url, settings.channel, root, directory)
        verbs = NodeVerbs(self._drain, self._resume, self._save, _free_bytes, self._gpus)
        journal = UpdateJournal(journal_path(settings, paths), self._shell.audit)
        return UpdateFlow(journal, self._backend(), channel, downloads_dir(settings, paths), verbs)

    def _backend(self) -> UpdateBackend:
        match self._settings.backend:
            case "venv":
                layout = Layout(releases_dir(self._settings, self._shell.paths))
                supervisor = SupervisorClient(supervisor_socket(self._shell.paths))
                return VenvBackend(layout, supervisor.shutdown)
            case "sysupdate":
                return SysupdateBackend(running_version().slot)
            case "nixos":
                return NixosBackend(running_version().version)
            case "none":
                raise InvalidRequest("updater.backend is none")

    async def _drain(self) -> None:
        """An answer that takes longer than drain_seconds is ended by the restart."""
        if "p2p" not in self._shell.node.processes:
            return
        async with P2pClient(self._shell.paths.socket("p2p")) as p2p:
            try:
                await p2p.drain(self._settings.drain_seconds)
            except Unavailable as error:
                _log.warning("update does not wait any longer", error=error.message)

    async def _resume(self) -> None:
        if "p2p" not in self._shell.node.processes:
            return
        async with P2pClient(self._shell.paths.socket("p2p")) as p2p:
            await p2p.resume()

    async def _gpus(self) -> int | None:
        if INFERENCE not in self._shell.node.processes:
            return None
        try:
            return await answering_gpus(self._shell.paths)
        except Unavailable as error:
            _log.warning("gpus are not counted before the update", error=error.message)
            return None

    async def _save(self) -> None:
        """A snapshot of the journal is made first, always."""
        if not any(name.startswith("chain") for name in self._shell.node.processes):
            return
        try:
            await self._snapshot()
        except (NotFound, Rejected) as error:
            raise Unavailable(f"no snapshot before the update: {error.message}") from error


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free
