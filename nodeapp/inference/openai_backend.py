"""OpenAI's API on the inference process's socket: the engine as a backend, and what only it has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from aiohttp import web

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.inference.host import EngineProvider
from nodeapp.service.clock import Clock
from nodeapp.service.openai_http import (
    OpenAiEndpoints,
    TakeEvent,
    Vectors,
    answering,
    json_response,
    read_body,
)
from nodeapp.wire import openai
from nodeapp.wire.ipc_inference import GenerateRequest
from nodeapp.wire.openai_embeddings import DetokeniseRequest, TokeniseRequest

CONCURRENCY = 8
DEFAULT_NAME = "default"
_SCOPE = "local"
"""Who may share prefixes: the socket is the operator's alone."""


class Embedder(Protocol):
    """Makes vectors of texts; see embedding.py."""

    @property
    def model_name(self) -> str:
        """File name of its model."""
        ...

    async def embed(
        self, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None
    ) -> tuple[Vectors, int]:
        """Unit vectors, and how many tokens were read."""
        ...


class EngineBackend:
    """The openai_http.Backend over whichever engine serves now."""

    concurrency = CONCURRENCY

    def __init__(self, engines: EngineProvider, embedder: Embedder | None) -> None:
        self._engines = engines
        self._embedder = embedder

    async def models(self) -> Sequence[tuple[str, str]]:
        """The chat model by file name and registry id, and the embedding model."""
        card = self._engines.current().card
        listed = [(card.file_name, card.repo), (card.model_id, card.repo)]
        if self._embedder is not None:
            listed.append((self._embedder.model_name, "embedding"))
        return listed

    def model_id(self, name: str) -> str:
        """File name, registry id or "default"."""
        card = self._engines.current().card
        if name not in (card.file_name, card.model_id, DEFAULT_NAME):
            raise NotFound(
                f"model {name[:128]!r} is not served here; {card.file_name!r} is", param="model"
            )
        return card.model_id

    async def generate(self, request: GenerateRequest, take: TakeEvent) -> None:
        """As the engine does."""
        asked = msgspec.structs.replace(request, cache_scope=_SCOPE)
        async with aclosing(self._engines.current().engine.generate(asked)) as events:
            async for event in events:
                await take(event)

    async def embed(
        self, model: str, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None
    ) -> tuple[Vectors, int]:
        """By the embedding model, when there is one."""
        embedder = self._embedder
        if embedder is None:
            raise InvalidRequest("no embedding model is served: set inference.embedding_model_path")
        if model not in (embedder.model_name, DEFAULT_NAME):
            raise NotFound(
                f"embedding model {model[:128]!r} is not served here; {embedder.model_name!r} is",
                param="model",
            )
        return await embedder.embed(inputs, dimensions)


class OpenAiApi:
    """Routes for clients that speak OpenAI's API to the process itself."""

    def __init__(self, engines: EngineProvider, embedder: Embedder | None, clock: Clock) -> None:
        self._engines = engines
        self._endpoints = OpenAiEndpoints(EngineBackend(engines, embedder), clock)

    def routes(self) -> Sequence[web.RouteDef]:
        """OpenAI's, and /tokenize, /detokenize, /health as llama-server has them."""
        return [
            *self._endpoints.routes(),
            web.post("/tokenize", answering(self._tokenise)),
            web.post("/detokenize", answering(self._detokenise)),
            web.get("/health", answering(self._health)),
        ]

    async def _tokenise(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), TokeniseRequest)
        prompts = self._engines.current().engine.prompts
        tokens = await prompts.tokenise(asked.content, add_special=asked.add_special)
        return json_response(msgspec.json.encode({"tokens": tokens}))

    async def _detokenise(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), DetokeniseRequest)
        text = self._engines.current().engine.prompts.detokenise(asked.tokens)
        return json_response(msgspec.json.encode({"content": text}))

    async def _health(self, _request: web.Request) -> web.StreamResponse:
        self._engines.current()
        return json_response(b'{"status":"ok"}')
