"""OpenAI's API over HTTP for whoever can generate: the inference process and the renter's proxy.

Headers of a stream go out with its first event, so that a refusal still has its status. A client
that leaves cancels its handler, and with it every generation under way. A slow client is waited
for, which pauses the generation; a backend that does not end it by itself has it cut off here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, assert_never

import msgspec
from aiohttp import web

from nodeapp.core.errors import NodeError, NotFound, TooLarge, Unavailable, leaves
from nodeapp.service.clock import Clock
from nodeapp.service.event_stream import EventStream
from nodeapp.wire import openai
from nodeapp.wire.ipc_inference import Event, Finished, GenerateRequest, Produced, Started
from nodeapp.wire.openai_embeddings import (
    BatchItem,
    BatchRequest,
    EmbeddingsRequest,
    batch_body,
    batch_refusal,
    batch_result,
    embeddings_body,
)
from nodeapp.wire.openai_replies import Choice, Head, events_of, usage_event, whole_body
from nodeapp.wire.openai_requests import (
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
    following,
)
from nodeapp.wire.openai_responses import ResponsesRequest, ResponseWriter, status_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TakeEvent = Callable[[Event], Awaitable[None]]
Take = Callable[[int, Event], Awaitable[None]]
Vectors = Sequence[Sequence[float]]


class Backend(Protocol):
    """Who generates."""

    @property
    def concurrency(self) -> int:
        """Answers of one call that may be generated at once."""
        ...

    async def models(self) -> Sequence[tuple[str, str]]:
        """(name, owner) of what may be asked for."""
        ...

    def model_id(self, name: str) -> str:
        """The model id of a name in a request.

        Raises:
            NodeError: nothing of that name is served.
        """
        ...

    async def generate(self, request: GenerateRequest, take: TakeEvent) -> None:
        """Hand over Started, Produced…, Finished; being cancelled cancels the generation.

        Raises:
            NodeError: refused, before Started.
        """
        ...

    async def embed(
        self, model: str, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None
    ) -> tuple[Vectors, int]:
        """Unit vectors, and how many tokens were read.

        Raises:
            NodeError: refused.
        """
        ...


class OpenAiEndpoints:
    """Handlers of one backend."""

    def __init__(
        self, backend: Backend, clock: Clock, *, slow_reader_seconds: float | None = None
    ) -> None:
        """Nothing is served before `routes` are.

        Args:
            backend: who generates.
            clock: for the time that answers carry.
            slow_reader_seconds: a client that takes nothing for so long is cut off; None: the
                backend sees to it.
        """
        self._backend = backend
        self._clock = clock
        self._patience = slow_reader_seconds

    def routes(self) -> list[web.RouteDef]:
        """Everything both servers have."""
        return [
            web.get("/v1/models", answering(self._models)),
            web.get("/v1/models/{name:.+}", answering(self._model)),
            web.post("/v1/chat/completions", answering(self._chat)),
            web.post("/v1/completions", answering(self._completions)),
            web.post("/v1/responses", answering(self._responses)),
            web.post("/v1/embeddings", answering(self._embeddings)),
            web.post("/v1/batch", answering(self._batch)),
        ]

    async def _models(self, _request: web.Request) -> web.StreamResponse:
        return json_response(openai.model_list(await self._backend.models(), self._now()))

    async def _model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        for known, owner in await self._backend.models():
            if known == name:
                entry = openai.model_entry(known, owner, self._now())
                return json_response(msgspec.json.encode(entry))
        raise NotFound(f"model {name[:128]!r} is not served here", param="model")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), ChatRequest)
        return await self._answer(request, asked, *self._chat_choices(asked))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), CompletionRequest)
        return await self._answer(request, asked, *self._text_choices(asked))

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), ResponsesRequest)
        if not asked.stream:
            return json_response(await self._whole_response(asked))
        generate, choice, writer = self._response_parts(asked)
        stream = EventStream(request, self._patience)

        async def take(_index: int, event: Event) -> None:
            if isinstance(event, Started):
                await stream.send(b"".join(writer.begin()))
            before = len(choice.text)
            _feed(choice, event)
            if len(choice.text) > before:
                await stream.send(writer.delta(choice.text[before:]))
            if isinstance(event, Finished):
                await stream.send(b"".join(writer.end(choice)))

        return await stream.run(self._each((generate,), take), ends_with=b"")

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), EmbeddingsRequest)
        return json_response(await self._embedded(asked))

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        asked = openai.decode(await read_body(request), BatchRequest)
        gate = asyncio.Semaphore(self._backend.concurrency)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._batch_item(item, gate)) for item in asked.requests]
        return json_response(batch_body([task.result() for task in running]))

    async def _batch_item(self, item: BatchItem, gate: asyncio.Semaphore) -> dict[str, object]:
        request_id = secrets.token_hex(16)
        try:
            async with gate:
                body = await self._whole(item.url, bytes(item.body))
        except NodeError as error:
            return batch_refusal(item, request_id, error)
        return batch_result(item, request_id, 200, body)

    async def _whole(self, url: str, body: bytes) -> bytes:
        """The body of an answer that is not streamed, whatever `stream` says."""
        match url:
            case "/v1/chat/completions":
                chat = openai.decode(body, ChatRequest)
                return await self._whole_answer(chat, *self._chat_choices(chat))
            case "/v1/completions":
                text = openai.decode(body, CompletionRequest)
                return await self._whole_answer(text, *self._text_choices(text))
            case "/v1/responses":
                return await self._whole_response(openai.decode(body, ResponsesRequest))
            case _:
                return await self._embedded(openai.decode(body, EmbeddingsRequest))

    async def _whole_response(self, asked: ResponsesRequest) -> bytes:
        generate, choice, writer = self._response_parts(asked)

        async def take(_index: int, event: Event) -> None:
            _feed(choice, event)

        await self._each((generate,), take)
        return msgspec.json.encode(writer.body(status_of(choice), choice))

    async def _embedded(self, asked: EmbeddingsRequest) -> bytes:
        vectors, tokens = await self._backend.embed(asked.model, asked.inputs(), asked.dimensions)
        return embeddings_body(asked, vectors, tokens)

    async def _answer(
        self,
        request: web.Request,
        asked: SamplingRequest,
        head: Head,
        generates: Sequence[GenerateRequest],
        choices: Sequence[Choice],
    ) -> web.StreamResponse:
        if not asked.stream:
            return json_response(await self._whole_answer(asked, head, generates, choices))
        stream = EventStream(request, self._patience)

        async def take(index: int, event: Event) -> None:
            chunks = _feed(choices[index], event)
            events = events_of(head, chunks, with_usage=asked.wants_usage)
            await stream.send(b"".join(events))

        async def run() -> None:
            await self._each(generates, take)
            if asked.wants_usage:
                await stream.send(usage_event(head, choices, asked.n or 1))

        return await stream.run(run(), ends_with=openai.DONE)

    async def _whole_answer(
        self,
        asked: SamplingRequest,
        head: Head,
        generates: Sequence[GenerateRequest],
        choices: Sequence[Choice],
    ) -> bytes:
        async def take(index: int, event: Event) -> None:
            _feed(choices[index], event)

        await self._each(generates, take)
        return whole_body(head, choices, asked.n or 1)

    async def _each(self, generates: Sequence[GenerateRequest], take: Take) -> None:
        """Run all; the first error ends the others.

        Raises:
            NodeError: what ended it.
        """
        gate = asyncio.Semaphore(self._backend.concurrency)
        failure: NodeError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for index, generate in enumerate(generates):
                    tasks.create_task(self._one(index, generate, take, gate))
        except* NodeError as group:
            failure = leaves(group)[0]
        if failure is not None:
            raise failure

    async def _one(
        self, index: int, generate: GenerateRequest, take: Take, gate: asyncio.Semaphore
    ) -> None:
        async def checked(event: Event) -> None:
            if isinstance(event, Finished) and event.reason == "error":
                raise Unavailable(event.detail or "the generation failed")
            await take(index, event)

        async with gate:
            await self._backend.generate(generate, checked)

    def _chat_choices(
        self, asked: ChatRequest
    ) -> tuple[Head, Sequence[GenerateRequest], Sequence[Choice]]:
        request_id = secrets.token_hex(16)
        first = self._with_model(asked.generate(request_id, _seed()), asked.model)
        names = [tool.name for tool in first.tools] if first.tool_choice != "none" else []
        count = asked.n or 1
        head = Head("chat", request_id, self._now(), asked.model)
        choices = [Choice("chat", index, request_id[:12], names) for index in range(count)]
        return head, [following(first, index) for index in range(count)], choices

    def _text_choices(
        self, asked: CompletionRequest
    ) -> tuple[Head, Sequence[GenerateRequest], Sequence[Choice]]:
        request_id = secrets.token_hex(16)
        generates = [
            following(self._with_model(first, asked.model), index)
            for first in asked.generate(request_id, _seed())
            for index in range(asked.n or 1)
        ]
        head = Head("text", request_id, self._now(), asked.model)
        return head, generates, [Choice("text", index, "") for index in range(len(generates))]

    def _response_parts(
        self, asked: ResponsesRequest
    ) -> tuple[GenerateRequest, Choice, ResponseWriter]:
        request_id = secrets.token_hex(16)
        generate = self._with_model(asked.generate(request_id, _seed()), asked.model)
        writer = ResponseWriter(asked, request_id, self._now())
        return generate, Choice("chat", 0, ""), writer

    def _with_model(self, generate: GenerateRequest, name: str) -> GenerateRequest:
        return msgspec.structs.replace(generate, model_id=self._backend.model_id(name))

    def _now(self) -> int:
        return int(self._clock.unix_seconds())


def answering(handle: Handler) -> Handler:
    """Answer a NodeError with OpenAI's error object, its status and Retry-After."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handle(request)
        except NodeError as error:
            return refusal(error)

    return answer


async def read_body(request: web.Request) -> bytes:
    """The whole body.

    Raises:
        TooLarge: over the server's limit.
    """
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLarge(f"body is over {request.app._client_max_size} bytes") from error  # noqa: SLF001  # aiohttp keeps its limit there


def refusal(error: NodeError) -> web.Response:
    """OpenAI's error object as a response."""
    return web.Response(
        status=openai.error_status(error),
        body=openai.error_body(error),
        content_type="application/json",
        headers=openai.error_headers(error),
    )


def json_response(body: bytes) -> web.Response:
    """A JSON body."""
    return web.Response(body=body, content_type="application/json")


def _feed(choice: Choice, event: Event) -> list[dict[str, object]]:
    match event:
        case Started():
            choice.started(event)
            return []
        case Produced():
            return choice.produced(event)
        case Finished():
            return choice.finished(event)
        case _:
            assert_never(event)


def _seed() -> int:
    """OpenAI's answers differ from call to call unless the client names a seed."""
    return secrets.randbits(48)
