"""Asking the inference process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Self

from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_inference import (
    Event,
    Finished,
    GenerateRequest,
    Gpus,
    Models,
    ModelState,
    Produced,
    Started,
    UseModel,
)

GENERATE = "/v1/generate"
MODELS = "/v1/models/facts"
GPUS = "/v1/gpus"


class InferenceClient:
    """Use as an async context manager; one client serves any number of requests at once."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "inference")

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def generate(
        self, request: GenerateRequest, *, deadline_seconds: float = 600.0
    ) -> AsyncGenerator[Event, None]:
        """Stream the events of one request: Started, Produced…, Finished.

        Closing the iterator (use contextlib.aclosing) frees the sequence. A reader that is slow
        pauses its own sequence only.

        Raises:
            NodeError: InvalidRequest, TooLarge, NotFound or Busy before Started.
            Unavailable: the process is gone, also in mid-stream; what was delivered stands and
                the request may be sent again with `continue_token_ids`.
        """
        request.check_unicode()
        kind: type[Event] = Started | Produced | Finished  # type: ignore[assignment]  # msgspec takes unions
        stream = self._rpc.stream(GENERATE, request, kind, deadline_seconds=deadline_seconds)
        async with stream as events:
            async for event in events:
                yield event

    async def use_model(self, name: str, *, deadline_seconds: float = 10.0) -> ModelState:
        """Ask for another model; returns at once, `model_state` tells how far it is.

        Raises:
            NotFound: not in the catalogue.
            Busy: another change is under way.
        """
        return await self._rpc.call(
            "/v1/models/load", UseModel(name), ModelState, deadline_seconds=deadline_seconds
        )

    async def unload_model(self, *, deadline_seconds: float = 10.0) -> ModelState:
        """Ask to serve nothing; returns at once.

        Raises:
            Busy: another change is under way.
        """
        return await self._rpc.call(
            "/v1/models/unload", Empty(), ModelState, deadline_seconds=deadline_seconds
        )

    async def model_state(self, *, deadline_seconds: float = 5.0) -> ModelState:
        """What is served, or happens."""
        return await self._rpc.get(
            "/v1/models/state", ModelState, deadline_seconds=deadline_seconds
        )

    async def gpus(self, *, deadline_seconds: float = 8.0) -> Gpus:
        """The GPUs of this machine.

        Raises:
            Unavailable: the driver does not answer, or does not fit its library.
        """
        return await self._rpc.get(GPUS, Gpus, deadline_seconds=deadline_seconds)

    async def models(self, *, deadline_seconds: float = 5.0) -> Models:
        """The models this process serves."""
        return await self._rpc.get(MODELS, Models, deadline_seconds=deadline_seconds)
