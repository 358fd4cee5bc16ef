"""The replicas of the inference process as one: each request goes to the one that suits it best.

That is where its conversation, else its renter, was answered before, because the prefix lies in
that KV cache; else the least loaded. One that refuses or is gone before it began is passed over;
one lost in mid-answer ends the stream with Unavailable, and the relay's next try goes elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Self

from nodeapp.core.errors import Busy, Unavailable
from nodeapp.core.routing import Load, preference
from nodeapp.rpc.inference import InferenceClient
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.service.replicas import FIRST, replica_processes
from nodeapp.wire.ipc_inference import Event, GenerateRequest, ModelFacts, Models, ModelState

MAX_HOMES = 4096
KEY_CHARACTERS = 1024
_log = get_logger(__name__)


@dataclass(slots=True)
class _Replica:
    """One process; `slots` and `models` as it said last, 0 and () when it serves nothing."""

    process: str
    client: InferenceClient
    slots: int = 0
    models: tuple[ModelFacts, ...] = ()
    open_requests: int = 0
    given: int = 0

    def load_for(self, model_id: str) -> Load:
        is_served = not model_id or any(model.model_id == model_id for model in self.models)
        return Load(self.open_requests, self.slots if is_served else 0, self.given)


class EngineMetrics:
    """Labels are bounded by the replicas there are."""

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.counter(
            "engine_requests_total", "Requests given to each engine", ("process",)
        )
        self.open_requests = metrics.gauge(
            "engine_open_requests", "Requests open on each engine", ("process",)
        )
        self.slots = metrics.gauge(
            "engine_slots", "Requests each engine answers at once now", ("process",)
        )


class Engines:
    """Use as an async context manager; owned by the event loop."""

    def __init__(self, shell: Shell) -> None:
        processes = replica_processes(shell.node.processes) or (FIRST,)
        self._replicas = tuple(
            _Replica(process, InferenceClient(shell.paths.socket(process))) for process in processes
        )
        self._metrics = EngineMetrics(shell.metrics)
        self._homes: OrderedDict[int, int] = OrderedDict()
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for replica in self._replicas:
            await self._resources.enter_async_context(replica.client)
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._resources.aclose()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Stream the events of one request from the replica that suits it; see InferenceClient.

        Raises:
            NodeError: as InferenceClient.generate; of the last replica that was asked.
        """
        keys = _affinity(request)
        places = self._preference(request, keys)
        for place in places:
            has_begun = False
            try:
                with self._given(place, keys) as client:
                    async with aclosing(client.generate(request)) as events:
                        async for event in events:
                            has_begun = True
                            yield event
                break
            except (Unavailable, Busy):
                if has_begun or place == places[-1]:
                    raise

    async def models(self) -> Models:
        """What all replicas together serve.

        Raises:
            Unavailable: none of them serves anything.
        """
        state = await self.model_state()
        served = {model.model_id: model for one in self._replicas for model in one.models}
        if not served:
            raise Unavailable(state.detail)
        return Models(tuple(served.values()))

    async def model_state(self) -> ModelState:
        """All replicas as one: slots added up, serving when one serves; asks each of them.

        Raises:
            Unavailable: none of them answers.
        """
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._look(replica)) for replica in self._replicas]
        states: dict[str, ModelState] = {}
        failures: list[Unavailable] = []
        for replica, task in zip(self._replicas, asked, strict=True):
            look = task.result()
            if isinstance(look, Unavailable):
                failures.append(look)
            else:
                states[replica.process] = look
        if not states:
            raise failures[0]
        return _together(states)

    async def _look(self, replica: _Replica) -> ModelState | Unavailable:
        try:
            state = await replica.client.model_state()
            models = (await replica.client.models()).models if state.slots else ()
        except Unavailable as error:
            if replica.slots:
                _log.warning("engine does not serve", process=replica.process, error=error.message)
            self._says(replica, 0, ())
            return error
        self._says(replica, state.slots, models)
        return state

    def _says(self, replica: _Replica, slots: int, models: tuple[ModelFacts, ...]) -> None:
        replica.slots, replica.models = slots, models
        self._metrics.slots.labels(replica.process).set(slots)

    @contextmanager
    def _given(self, place: int, keys: tuple[int, ...]) -> Iterator[InferenceClient]:
        replica = self._replicas[place]
        self._remember(place, keys)
        replica.open_requests += 1
        replica.given += 1
        self._metrics.requests.labels(replica.process).inc()
        gauge = self._metrics.open_requests.labels(replica.process)
        gauge.inc()
        try:
            yield replica.client
        except Unavailable:
            # Passed over until it says that it serves.
            self._says(replica, 0, ())
            raise
        finally:
            replica.open_requests -= 1
            gauge.dec()

    def _preference(self, request: GenerateRequest, keys: tuple[int, ...]) -> tuple[int, ...]:
        home = next((self._homes[key] for key in keys if key in self._homes), None)
        return preference([one.load_for(request.model_id) for one in self._replicas], home)

    def _remember(self, place: int, keys: tuple[int, ...]) -> None:
        for key in keys:
            self._homes[key] = place
            self._homes.move_to_end(key)
        while len(self._homes) > MAX_HOMES:
            self._homes.popitem(last=False)


def _affinity(request: GenerateRequest) -> tuple[int, ...]:
    """What its prefix is known by, the longest first: how the conversation began; its renter.

    KV cells are shared inside one cache scope only, so nothing is known beyond it.
    """
    if not request.cache_scope:
        return ()
    opening = [request.prompt_text[:KEY_CHARACTERS]]
    for message in request.messages:
        opening += (message.role, message.content[:KEY_CHARACTERS])
        if message.role == "user":
            break
    scope = request.cache_scope
    return hash((scope, *opening)), hash(scope)


def _together(states: Mapping[str, ModelState]) -> ModelState:
    found = tuple(states.values())
    if len(found) == 1:
        return found[0]
    phases = [state.phase for state in found]
    return ModelState(
        name=", ".join(sorted({state.name for state in found if state.slots})),
        phase="serving" if "serving" in phases else phases[0],
        detail="; ".join(f"{process}: {state.detail}" for process, state in states.items()),
        error="; ".join(f"{name}: {state.error}" for name, state in states.items() if state.error),
        slots=sum(state.slots for state in found),
    )
