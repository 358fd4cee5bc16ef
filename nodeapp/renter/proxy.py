"""A local OpenAI-compatible endpoint in front of the marketplace: any client rents GPUs with it.

    base_url = http://127.0.0.1:8081/v1, any api_key

One paid session is kept and used for one answer after the other; when its deposit is used up or
the host has closed it, the next question opens a new one. Binds to loopback: whoever reaches the
port spends the renter's money.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from nodeapp.core.errors import (
    InvalidRequest,
    NodeError,
    PaymentRequired,
    Unauthorised,
    leaves,
)
from nodeapp.core.ids import ModelId
from nodeapp.renter.answer import Question
from nodeapp.renter.events import AnswerEnded, AnyEvent, TokensReceived
from nodeapp.renter.record import SessionRecord
from nodeapp.renter.run import Renter
from nodeapp.wire import openai

DEFAULT_MAX_TOKENS = 512
MAX_BODY_BYTES = 4 << 20
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Events:
    """Where a running answer's reports go; at most one answer runs at a time."""

    current: asyncio.Queue[AnyEvent | NodeError] | None = None

    def report(self, event: AnyEvent) -> None:
        """Handed to the renter as its Report."""
        if self.current is not None:
            self.current.put_nowait(event)


@dataclass(slots=True)
class Proxy:
    """The endpoint's handlers."""

    renter: Renter
    events: Events
    _record: SessionRecord | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # guards the one paid session

    def application(self) -> web.Application:
        """Routes of the endpoint."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[programs_only])
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/health", self.health)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        """The proxy itself is up."""
        return web.json_response({"status": "ok"})

    async def models(self, _request: web.Request) -> web.Response:
        """Models on offer now."""
        try:
            found = await self.renter.find_hosts(ModelId(self.renter.settings.model_id))
        except NodeError as error:
            return _refusal(error)
        names = {host.offer.model_id: host.offer.name for host in found}
        created = int(self.renter.clock.unix_seconds())
        listed = tuple((model_id, name) for model_id, name in names.items())
        return _json(200, openai.model_list(listed, created))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        try:
            asked = openai.decode_chat(await request.read())
            question = _question(asked)
            model_id = self._model(asked.model)
        except NodeError as error:
            return _refusal(error)
        async with self._turn:
            if asked.stream:
                return await self._stream(request, asked, question, model_id)
            return await self._whole(asked, question, model_id)

    def _model(self, name: str) -> ModelId:
        """A registry id, or "default" for the settings' model."""
        if name == "default":
            return ModelId(self.renter.settings.model_id)
        if len(name) != 66 or not name.startswith("0x"):
            raise InvalidRequest(f"model {name!r} is not a model id of /v1/models, nor 'default'")
        return ModelId(name.lower())

    async def _whole(
        self, asked: openai.ChatRequest, question: Question, model_id: ModelId
    ) -> web.Response:
        try:
            async with asyncio.TaskGroup() as tasks:
                events = self._begin(tasks, question, model_id)
                ended = [event async for event in events if isinstance(event, AnswerEnded)][-1]
        except* NodeError as group:
            refusal = _refusal(leaves(group)[0])
        else:
            body = self._completion(asked, ended.request_id).whole(
                ended.answer, ended.finish_reason, ended.prompt_tokens, ended.tokens
            )
            return _json(200, body)
        return refusal

    async def _stream(
        self,
        request: web.Request,
        asked: openai.ChatRequest,
        question: Question,
        model_id: ModelId,
    ) -> web.StreamResponse:
        """Headers go out with the first token, so that a refusal still has its status."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        completion = self._completion(asked, "")
        try:
            async with asyncio.TaskGroup() as tasks:
                async for event in self._begin(tasks, question, model_id):
                    await self._write(request, response, event, completion, asked)
        except* NodeError as group:
            error = leaves(group)[0]
            if not response.prepared:
                response = _refusal(error)
            else:
                _status, body = openai.error_reply(error)
                await response.write(b"data: " + body + b"\n\n")
        return response

    async def _write(
        self,
        request: web.Request,
        response: web.StreamResponse,
        event: AnyEvent,
        completion: openai.Completion,
        asked: openai.ChatRequest,
    ) -> None:
        is_first = not response.prepared
        if is_first and isinstance(event, TokensReceived | AnswerEnded):
            await response.prepare(request)
        if isinstance(event, TokensReceived):
            chunk = completion.chunk(text=event.text, finish_reason=None, is_first=is_first)
            await response.write(chunk)
        elif isinstance(event, AnswerEnded):
            chunk = completion.chunk(
                text=None, finish_reason=event.finish_reason, is_first=is_first
            )
            await response.write(chunk)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                await response.write(completion.usage_chunk(event.prompt_tokens, event.tokens))
            await response.write(openai.DONE)
            await response.write_eof()

    def _completion(self, asked: openai.ChatRequest, request_id: str) -> openai.Completion:
        created = int(self.renter.clock.unix_seconds())
        return openai.Completion(f"chatcmpl-{request_id or created}", created, asked.model)

    def _begin(
        self, tasks: asyncio.TaskGroup, question: Question, model_id: ModelId
    ) -> AsyncIterator[AnyEvent]:
        """Ask in the background; the caller's TaskGroup ends it when the client leaves."""
        queue: asyncio.Queue[AnyEvent | NodeError] = asyncio.Queue()
        self.events.current = queue
        tasks.create_task(self._ask_into(queue, question, model_id))
        return _until_ended(queue)

    async def _ask_into(
        self, queue: asyncio.Queue[AnyEvent | NodeError], question: Question, model_id: ModelId
    ) -> None:
        """Errors go through the queue too, so that they come after the events before them."""
        try:
            await self._ask(question, model_id)
        except* NodeError as group:
            queue.put_nowait(leaves(group)[0])
        finally:
            self.events.current = None

    async def _ask(self, question: Question, model_id: ModelId) -> None:
        """On the kept session; a new one is paid for when the old one is of no more use."""
        record = self._record
        if record is None or record.head.model_id != model_id:
            record = await self.renter.reopen(model_id) or await self.renter.pay(model_id)
        self._record = record
        before = len(record.token_ids)
        try:
            await self.renter.ask(record, question)
        except PaymentRequired:
            if len(record.token_ids) > before:
                raise  # asked anew, the answer would begin again after what the client has
            await self._close(record)
            self._record = await self.renter.pay(model_id)
            await self.renter.ask(self._record, question)

    async def close(self) -> None:
        """End the paid session, so that the rest of the deposit comes back."""
        if self._record is not None:
            await self._close(self._record)

    async def _close(self, record: SessionRecord) -> None:
        with contextlib.suppress(NodeError):  # the host closes idle sessions by itself
            await self.renter.close(record)


@web.middleware
async def programs_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web page may send to loopback, too, and must not spend the renter's money.

    Browsers name the page in Origin; a page that had its own name resolve to loopback is known by
    the Host it asks for.
    """
    host = request.host.rpartition(":")[0] if request.url.explicit_port else request.host
    if "Origin" in request.headers or host.strip("[]") not in LOOPBACK_NAMES:
        return _refusal(Unauthorised("web pages may not use this endpoint"))
    return await handler(request)


async def _until_ended(queue: asyncio.Queue[AnyEvent | NodeError]) -> AsyncIterator[AnyEvent]:
    while True:
        event = await queue.get()
        if isinstance(event, NodeError):
            raise event
        yield event
        if isinstance(event, AnswerEnded):
            return


def _question(asked: openai.ChatRequest) -> Question:
    return Question(
        messages=asked.turns(),
        max_tokens=asked.limit(DEFAULT_MAX_TOKENS),
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=asked.top_p or 0.0,
        seed=asked.seed or 0,
        stop=asked.stops(),
    )


def _refusal(error: NodeError) -> web.Response:
    status, body = openai.error_reply(error)
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return _json(status, body, headers)


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
