"""Routes of the inference process: generate (stream) and models; the shell adds the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from aiohttp import web

from nodeapp.inference.host import EngineProvider
from nodeapp.service.server import query, stream_endpoint
from nodeapp.wire.ipc_inference import Event, GenerateRequest, ModelFacts, Models


class InferenceApi:
    """Handlers over whichever engine serves now; Unavailable while a model is being changed."""

    def __init__(self, engines: EngineProvider) -> None:
        self._engines = engines

    def routes(self) -> Sequence[web.RouteDef]:
        """POST /v1/generate, GET /v1/models/facts."""
        return [
            web.post("/v1/generate", stream_endpoint(GenerateRequest, self._generate)),
            web.get("/v1/models/facts", query(self._models)),
        ]

    async def _generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        engine = self._engines.current().engine
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                yield event

    async def _models(self) -> Models:
        served = self._engines.current()
        card, engine = served.card, served.engine
        facts = ModelFacts(
            model_id=card.model_id,
            repo=card.repo,
            file_name=card.file_name,
            sha256=card.sha256,
            size_bytes=card.size_bytes,
            architecture=card.architecture,
            quantisation=card.quantisation,
            context_length=engine.context_length,
            trained_context_length=card.context_length,
            vocabulary_size=card.vocabulary_size,
            end_token_ids=engine.end_token_ids,
        )
        return Models((facts,))
