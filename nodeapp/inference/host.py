"""ModelHost: which engine serves now; changes it while the process's API goes on answering.

A change is checked while the old model still serves; then requests are refused with Unavailable
and a time to come back, the open ones finish (DRAIN_SECONDS), the old engine is freed, the new
one loaded. Two models are never in memory together. A load that fails brings the old one back.
Rules: one task (`run`) makes every change; handlers only ask for one and read the state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nodeapp.core.errors import Busy, Corrupt, NodeError, Unavailable
from nodeapp.core.model_card import ModelCard
from nodeapp.inference.engine import Engine
from nodeapp.inference.model_store import BlobHold
from nodeapp.inference.models import FileIdentity, ModelFile
from nodeapp.service.logs import get_logger
from nodeapp.wire.ipc_inference import ModelPhase, ModelState

DRAIN_SECONDS = 30.0
RETRY_SECONDS = 3.0
LOOK_SECONDS = 30.0
_log = get_logger(__name__)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model and the engine that answers with it.

    `detail` is one line for people; `identity` is that of the file as it was checked; `hold`
    keeps a file of the store from being removed.
    """

    model: ModelFile
    card: ModelCard
    engine: Engine
    detail: str
    identity: FileIdentity
    hold: BlobHold | None = None


class EngineProvider(Protocol):
    """What the API needs of a ModelHost."""

    def current(self) -> Served:
        """The model that serves now.

        Raises:
            Unavailable: none does; says what happens and when to come back.
        """
        ...


class Loader(Protocol):
    """Makes an engine of a file."""

    async def check(self, model: ModelFile, report: Report) -> ModelCard:
        """Look at the file without loading it here; the old model still serves.

        Raises:
            NodeError: it will not be served; the message says why.
        """
        ...

    async def load(self, model: ModelFile, card: ModelCard, report: Report) -> Served:
        """Load it.

        Raises:
            NodeError: it cannot be loaded.
        """
        ...

    async def look_again(self, served: Served) -> None:
        """See that nobody writes into the file that is served.

        Raises:
            Corrupt: somebody did; its bytes are not the checked ones any more.
        """
        ...


class ModelHost:
    """Owned by the inference process."""

    def __init__(
        self,
        loader: Loader,
        *,
        remember: Callable[[ModelFile], None],
        slots: Callable[[], int],
        drain_seconds: float = DRAIN_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """See the arguments.

        Args:
            loader: makes engines.
            remember: told, in a thread, of every model that a change brought up.
            slots: requests that may be answered at once now.
            drain_seconds: how long open requests may take before a change.
            look_seconds: how often the served file is looked at.
        """
        self._loader = loader
        self._slots = slots
        self._remember = remember
        self._drain_seconds = drain_seconds
        self._look_seconds = look_seconds
        self._served: Served | None = None
        self._phase: ModelPhase = "none"
        self._progress = self._why_none = "no model is loaded"
        self._error = ""
        self._wanted: asyncio.Queue[ModelFile | None] = asyncio.Queue(maxsize=1)

    async def start(self, model: ModelFile) -> None:
        """Load the first model.

        Raises:
            NodeError: it cannot be served.
        """
        self._enter("checking", f"checking {model.file_name}")
        await self._bring_up(model, await self._loader.check(model, self._report))

    async def run(self) -> None:
        """Make the changes that are asked for, until cancelled.

        Raises:
            Corrupt: the decode thread of the serving engine ended by itself, or its file changed.
        """
        async with asyncio.TaskGroup() as watches:
            watches.create_task(self._look_forever())
            if self._served is not None:
                watches.create_task(_watch(self._served.engine))
            while True:
                former = self._served
                await self._change(await self._wanted.get())
                if self._served is not None and self._served is not former:
                    watches.create_task(_watch(self._served.engine))

    def current(self) -> Served:
        """See EngineProvider."""
        if self._served is None or not self.is_serving:
            raise Unavailable(self._progress, retry_after_seconds=RETRY_SECONDS)
        return self._served

    @property
    def is_serving(self) -> bool:
        """Requests are taken; also while the next model is being checked."""
        return self._served is not None and self._phase in ("serving", "checking")

    @property
    def served(self) -> Served | None:
        """The loaded model, also while it drains."""
        return self._served

    @property
    def state(self) -> ModelState:
        """For people and for who waits for a change."""
        name = self._served.model.file_name if self._served is not None else ""
        return ModelState(
            name=name,
            phase=self._phase,
            detail=self._progress,
            error=self._error,
            slots=self._slots() if self.is_serving else 0,
        )

    def ask(self, model: ModelFile | None) -> None:
        """Serve this model next; None: serve nothing.

        Raises:
            Busy: another change is under way.
        """
        if self._phase not in ("serving", "none"):
            raise Busy(
                f"another change is under way: {self._progress}",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._why_none = "no model is loaded; the operator unloaded it"
        # Said at once, so that whoever asks for the state next sees that something happens.
        self._error = ""
        asked = "unloading" if model is None else f"checking {model.file_name}"
        self._enter("checking", asked)
        self._wanted.put_nowait(model)

    def quarantine(self, reason: str) -> None:
        """Finish the open requests, free the model and serve nothing: its device is faulty.

        Raises:
            Busy: a change is under way.
        """
        self.ask(None)
        self._why_none = f"no model is loaded; {reason}"
        self._report(f"in quarantine: {reason}")

    async def drain(self) -> None:
        """Refuse new requests and finish the open ones; for the end of the process."""
        if self._served is not None:
            await self._served.engine.wait_idle()

    async def stop(self) -> None:
        """Free the model."""
        served, self._served = self._served, None
        if served is not None:
            await _free(served)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            if self._served is not None:
                await self._loader.look_again(self._served)

    async def _change(self, model: ModelFile | None) -> None:
        former = self._served
        try:
            card = await self._loader.check(model, self._report) if model is not None else None
        except NodeError as error:
            self._failed(error, former)
            return
        await self._take_down()
        if model is None or card is None:
            self._enter("none", self._why_none)
            return
        try:
            await self._bring_up(model, card)
        except NodeError as error:
            await self._go_back(error, former)
        else:
            await asyncio.to_thread(self._remember, model)

    async def _bring_up(self, model: ModelFile, card: ModelCard) -> None:
        self._enter("loading", f"loading {model.file_name}")
        self._serve(await self._loader.load(model, card, self._report))

    async def _go_back(self, error: NodeError, former: Served | None) -> None:
        if former is None:
            self._failed(error, None)
            return
        _log.warning("model change failed, loading the former one", error=error.message)
        try:
            await self._bring_up(former.model, former.card)
        except NodeError as second:
            self._failed(second, None)
        self._error = error.message

    async def _take_down(self) -> None:
        served = self._served
        if served is None:
            return
        self._enter("draining", f"{served.engine.open_requests} requests finish first")
        try:
            async with asyncio.timeout(self._drain_seconds):
                await served.engine.wait_idle()
        except TimeoutError:
            _log.warning("drain deadline passed", seconds=self._drain_seconds)
        self._served = None
        await _free(served)

    def _failed(self, error: NodeError, former: Served | None) -> None:
        self._error = error.message
        _log.warning("model is not served", code=error.code, error=error.message)
        if former is not None:
            self._serve(former)
        else:
            self._enter("none", f"no model is loaded: {error.message}")

    def _serve(self, served: Served) -> None:
        self._served = served
        self._enter("serving", served.detail)

    def _enter(self, phase: ModelPhase, progress: str) -> None:
        self._phase = phase
        self._report(progress)

    def _report(self, progress: str) -> None:
        self._progress = progress


async def _free(served: Served) -> None:
    await served.engine.stop()
    if served.hold is not None:
        served.hold.close()


async def _watch(engine: Engine) -> None:
    failure = await engine.wait_failed()
    if failure:
        raise Corrupt(f"engine: {failure}")
