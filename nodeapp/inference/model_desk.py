"""What the operator asks of the running process: serve that model, serve none, how far is it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from nodeapp.inference.host import ModelHost
from nodeapp.inference.model_choice import ModelChoice
from nodeapp.service.server import endpoint, operator, query
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_inference import ModelState, UseModel


class ModelDesk:
    """Handlers; they ask the host, which changes the model in its own task."""

    def __init__(self, choice: ModelChoice, host: ModelHost) -> None:
        self._choice = choice
        self._host = host

    def routes(self) -> Sequence[web.RouteDef]:
        """POST /v1/models/load, POST /v1/models/unload, GET /v1/models/state."""
        return [
            web.post("/v1/models/load", operator(endpoint(UseModel, self._load))),
            web.post("/v1/models/unload", operator(endpoint(Empty, self._unload))),
            web.get("/v1/models/state", query(self._state)),
        ]

    async def _load(self, request: UseModel) -> ModelState:
        if request.name:
            model = await asyncio.to_thread(self._choice.named, request.name)
        else:
            model = self._choice.configured()
        self._host.ask(model)
        return self._host.state

    async def _unload(self, _request: Empty) -> ModelState:
        self._host.ask(None)
        return self._host.state

    async def _state(self) -> ModelState:
        return self._host.state
