"""Carries out an update: journal the state, then run its effects, one after the other.

One flow at a time. A step that fails leads back to idle with the reason; the node serves on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import Corrupt, NodeError, NotFound, Rejected, TooLarge, Unavailable
from nodeapp.core.release import Artefact, Release
from nodeapp.core.update import (
    Allowed,
    ApplyAsked,
    Arm,
    Bless,
    Change,
    CheckAsked,
    Download,
    Drain,
    Effect,
    FallBack,
    FetchMetadata,
    HoldSet,
    Install,
    Phase,
    ReleaseFound,
    Restart,
    Resume,
    RollbackAsked,
    Snapshot,
    Started,
    StepDone,
    StepFailed,
    UpdateState,
)
from nodeapp.service.download import Progress, Wanted, download
from nodeapp.service.logs import get_logger
from nodeapp.store.digest import sha256_of
from nodeapp.updater.backend import ReleaseUnusable, UpdateBackend
from nodeapp.updater.channel import Channel
from nodeapp.updater.update_journal import UpdateJournal

_log = get_logger(__name__)
Act = Callable[[], Awaitable[None]]
Permit = Callable[[], str]
"""Why the node may not be restarted now; "" when it may."""
RESTART_SECONDS = 60.0
MAX_RESTART_SECONDS = 900.0
"""First and longest pause before a restart that did not come is asked for again."""
RESERVE_BYTES = 256 << 20
"""Left free for the journal and the logs when a release is fetched."""


def always() -> str:
    """What a person asks for is done."""
    return ""


async def _nobody_counts() -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class NodeVerbs:
    """What the flow asks of the rest of the node."""

    drain: Act
    resume: Act
    snapshot: Act
    free_bytes: Callable[[Path], int]
    gpus: Callable[[], Awaitable[int | None]] = _nobody_counts
    """GPUs that answer; None: nobody can tell."""


class UpdateFlow:
    """Owned by the updater process."""

    def __init__(
        self,
        journal: UpdateJournal,
        backend: UpdateBackend,
        channel: Channel,
        downloads: Path,
        verbs: NodeVerbs,
        *,
        restart_seconds: float = RESTART_SECONDS,
    ) -> None:
        self._journal = journal
        self._backend = backend
        self._channel = channel
        self._downloads = downloads
        self._verbs = verbs
        # Guards the journal between a request and the step that runs.
        self._busy = asyncio.Lock()
        self._begun: asyncio.Queue[tuple[Effect, ...]] = asyncio.Queue(maxsize=1)
        self._restart_seconds = restart_seconds
        self._owes_restart = False
        self._permit: Permit = always
        self.progress = Progress(0, 0, 0)

    def state(self) -> UpdateState:
        """As journalled. Raises: Corrupt."""
        return self._journal.read()

    async def start(self) -> UpdateState:
        """End what an interruption left open; a damaged journal is begun again.

        Raises:
            Unavailable: the journal cannot be written.
        """
        version = await asyncio.to_thread(self._backend.running)
        try:
            self.state()
        except Corrupt as error:
            _log.error("update journal is given up", error=error.message)
            return self._journal.begin_again(version, error.message)
        if not version or self.state().phase is Phase.BOOTED:
            # A trial is judged by whoever started it.
            return self.state()
        state, effects = await self._advance(Started(version, self._backend.boot()))
        if state.phase is Phase.REBOOT_PENDING:
            # Asked before this process was restarted, and nothing went down: `run` asks again.
            self._begun.put_nowait(effects)
        else:
            await self.work(effects)
        return state

    async def check(self) -> UpdateState:
        """Look what the channel offers, to the end.

        Raises:
            Rejected, Unavailable: see Channel.newest.
        """
        async with self._busy:
            await self._advance(CheckAsked())
            return await self._look()

    async def apply(self, permit: Permit = always) -> UpdateState:
        """Begin to install what is available; `run` does it.

        Args:
            permit: asked once more before the node is drained.
        """
        return await self._begin(ApplyAsked(), permit)

    async def rollback(self) -> UpdateState:
        """Begin to go back."""
        return await self._begin(RollbackAsked(), always)

    async def allow(self, version: str) -> UpdateState:
        """Take a version off the blacklist. Raises: Rejected: it is not on it."""
        async with self._busy:
            state, _effects = await self._advance(Allowed(version))
            return state

    async def hold(self, *, is_held: bool) -> UpdateState:
        """Stop or allow updates; what is under way goes on."""
        async with self._busy:
            state, _effects = await self._advance(HoldSet(is_held))
            return state

    async def run(self) -> None:
        """Work off what was begun, for ever."""
        while True:
            await self.work(await self._begun.get())
            await self._restart_again()

    async def _restart_again(self) -> None:
        """Until it ends this process: the helper may refuse, and a machine may stay up."""
        pause = self._restart_seconds
        while self._owes_restart:
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RESTART_SECONDS)
            _log.warning("restart for the update is asked for again")
            await self.work((Drain(), Restart()))

    async def work(self, effects: tuple[Effect, ...]) -> None:
        """Run effects and those that follow from them."""
        while effects:
            change: Change | None = None
            for effect in effects:
                change = await self._carry_out(effect)
            if change is None:
                return
            async with self._busy:
                state, effects = await self._advance(change)
                if state.phase is Phase.VERIFIED:
                    # Its own phase, so that a power cut here need not hash the files again.
                    verified = StepDone(Phase.VERIFIED, is_previous_lost=self._backend.keeps_two)
                    state, effects = await self._advance(verified)
            _log.info("update", phase=state.phase, reason=state.reason)

    async def _begin(self, change: Change, permit: Permit) -> UpdateState:
        async with self._busy:
            state, effects = await self._advance(change)
            self._permit = permit
            self.progress = Progress(0, 0, 0)
            self._begun.put_nowait(effects)
            return state

    async def _advance(self, change: Change) -> tuple[UpdateState, tuple[Effect, ...]]:
        return await asyncio.to_thread(self._journal.advance, change)

    async def _look(self) -> UpdateState:
        found: Change = StepFailed("the check was broken off")
        try:
            found = ReleaseFound(await self._channel.newest(self._backend.kind))
        except NodeError as error:
            found = _not_found(error)
            raise
        finally:
            # Whatever happened: nothing else could be begun in this phase.
            state, _effects = await self._advance(found)
        await asyncio.to_thread(self._tidy, state.available)
        return state

    async def _carry_out(self, effect: Effect) -> Change | None:
        try:
            return await self._step(effect)
        except ReleaseUnusable as error:
            _log.warning("release refused", reason=error.reason)
            return StepFailed(error.reason, is_release_bad=True)
        except NodeError as error:
            _log.warning("update step failed", error=error.message)
            if isinstance(effect, FetchMetadata):
                return _not_found(error)
            is_over = isinstance(effect, Restart | Resume | Bless | FallBack)
            return None if is_over else StepFailed(error.message)

    async def _step(self, effect: Effect) -> Change | None:  # noqa: C901  # one line an effect
        match effect:
            case FetchMetadata():
                return ReleaseFound(await self._channel.newest(self._backend.kind))
            case Download(release):
                await self._fetch(release)
                return StepDone(Phase.DOWNLOADING)
            case Install(release):
                await asyncio.to_thread(self._backend.install, release, self._files(release))
                return StepDone(Phase.INSTALLING)
            case Drain():
                self._ask_permit()
                await self._verbs.drain()
                return StepDone(Phase.DRAINING)
            case Snapshot():
                await self._verbs.snapshot()
                return StepDone(Phase.SNAPSHOTTING)
            case Arm(version):
                gpus = await self._verbs.gpus()
                await asyncio.to_thread(self._backend.arm, version)
                return StepDone(Phase.ARMING, self._backend.boot(), gpus=gpus)
            case Restart():
                await self._restart()
            case Resume():
                await self._verbs.resume()
            case Bless(version, previous):
                await asyncio.to_thread(self._backend.bless, version, previous)
            case FallBack(version, failed):
                await asyncio.to_thread(self._backend.fall_back, version, failed)
        return None

    def _ask_permit(self) -> None:
        """Once: what was drained is restarted."""
        permit, self._permit = self._permit, always
        if refusal := permit():
            raise Unavailable(refusal)

    async def _restart(self) -> None:
        """Raises: Unavailable: not now; the node serves until it is asked for again."""
        try:
            self._owes_restart = await asyncio.to_thread(self._backend.restart)
        except NodeError:
            self._owes_restart = True
            await self._verbs.resume()
            raise
        if not self._owes_restart:
            await self._verbs.resume()

    def _files(self, release: Release) -> tuple[Path, ...]:
        return tuple(self._file(artefact) for artefact in release.artefacts)

    def _file(self, artefact: Artefact) -> Path:
        return self._downloads / Path(artefact.path).name

    async def _fetch(self, release: Release) -> None:
        """All artefacts; parts that are there are continued, other releases' files removed.

        Raises:
            Rejected: a file is not the signed one.
            Unavailable: the connection broke, or no room.
        """
        self._downloads.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self._tidy, release)
        done, total = 0, sum(artefact.size_bytes for artefact in release.artefacts)
        for artefact in release.artefacts:
            base = done

            def report(progress: Progress, base: int = base) -> None:
                self.progress = Progress(base + progress.done, total, progress.resumed)

            await self._fetch_one(artefact, report)
            done += artefact.size_bytes
        self.progress = Progress(total, total, 0)

    async def _fetch_one(self, artefact: Artefact, report: Callable[[Progress], None]) -> None:
        path = self._file(artefact)
        # SHA256SUMS of two releases have one name and one size.
        if await asyncio.to_thread(_is_there, path, artefact):
            return
        part = path.with_name(path.name + ".part")
        wanted = Wanted(self._channel.address(artefact), artefact.size_bytes, artefact.sha256)
        try:
            await download(wanted, part, report=report, check_room=self._check_room)
            await asyncio.to_thread(part.replace, path)
        except (TooLarge, NotFound, Rejected) as error:
            raise Rejected(f"{artefact.path} is not what was signed: {error.message}") from error
        except OSError as error:
            raise Unavailable(f"{path} cannot be written: {error.strerror}") from error

    def _check_room(self, needed: int) -> None:
        free = self._verbs.free_bytes(self._downloads)
        if needed + RESERVE_BYTES > free:
            raise Unavailable(
                f"{self._downloads} has {free >> 20} MiB free, the release needs "
                f"{(needed + RESERVE_BYTES) >> 20} MiB"
            )

    def _tidy(self, release: Release | None) -> None:
        """Other releases' files go, with None also those of the one that runs."""
        kept = {path.name for path in self._files(release)} if release else set()
        for path in self._downloads.glob("*"):
            if path.name.removesuffix(".note").removesuffix(".part") not in kept:
                path.unlink(missing_ok=True)


def _not_found(error: NodeError) -> StepFailed:
    """What is refused takes the former offer with it; an outage does not."""
    return StepFailed(error.message, is_offer_void=isinstance(error, Rejected))


def _is_there(path: Path, artefact: Artefact) -> bool:
    """Fetched before, to the last byte."""
    if not path.is_file() or path.stat().st_size != artefact.size_bytes:
        return False
    return sha256_of(path) == artefact.sha256
