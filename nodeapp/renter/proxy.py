"""A local OpenAI-compatible endpoint in front of the marketplace: any client rents GPUs with it.

    base_url = http://127.0.0.1:8081/v1, any api_key

One paid session is kept and used for one answer after the other; when its deposit is used up or
the host has closed it, the next question opens a new one. Tokens are acknowledged when the client
has taken their text: no more than a receipt window is bought for one that stops reading. Several
answers of one call (`n`, prompt lists, batches) are asked one after the other, and each one's
tokens are paid for. Binds to loopback: whoever reaches the port spends the renter's money.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from nodeapp.core.errors import InvalidRequest, NodeError, Unauthorised, leaves
from nodeapp.core.ids import ModelId
from nodeapp.renter.answer import Question
from nodeapp.renter.events import AnswerEnded, AnyEvent, TokensReceived
from nodeapp.renter.failover import ask_anywhere
from nodeapp.renter.record import SessionRecord
from nodeapp.renter.run import Renter
from nodeapp.service.openai_http import OpenAiEndpoints, TakeEvent, Vectors, refusal
from nodeapp.wire.ipc_inference import Finished, FinishReason, GenerateRequest, Produced, Started

MAX_BODY_BYTES = 4 << 20
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
DEFAULT_NAME = "default"
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "cancelled": "cancelled"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Events:
    """Where a running answer's reports go; at most one answer runs at a time."""

    current: asyncio.Queue[AnyEvent | NodeError] | None = None

    def report(self, event: AnyEvent) -> None:
        """Handed to the renter as its Report."""
        if self.current is not None:
            self.current.put_nowait(event)

    async def pace(self) -> None:
        """Handed to the renter as its Pace, which bounds the queue to one batch of tokens."""
        if self.current is not None:
            await self.current.join()


@dataclass(slots=True)
class Proxy:
    """The endpoint, and the openai_http.Backend that it is made of."""

    renter: Renter
    events: Events
    _record: SessionRecord | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # guards the one paid session

    def application(self) -> web.Application:
        """Routes of the endpoint."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[programs_only])
        patience = self.renter.settings.slow_reader_seconds
        endpoints = OpenAiEndpoints(self, self.renter.clock, slow_reader_seconds=patience)
        app.router.add_routes(endpoints.routes())
        app.router.add_get("/health", self.health)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        """The proxy itself is up."""
        return web.json_response({"status": "ok"})

    @property
    def concurrency(self) -> int:
        """A session answers one question at a time."""
        return 1

    async def models(self) -> Sequence[tuple[str, str]]:
        """Models on offer now."""
        found = await self.renter.find_hosts(ModelId(self.renter.settings.model_id))
        return tuple({host.offer.model_id: host.offer.name for host in found}.items())

    def model_id(self, name: str) -> str:
        """A registry id, or "default" for the settings' model."""
        if name == DEFAULT_NAME:
            return self.renter.settings.model_id
        if len(name) != 66 or not name.startswith("0x"):
            raise InvalidRequest(
                f"model {name!r} is not a model id of /v1/models, nor {DEFAULT_NAME!r}",
                param="model",
            )
        return name.lower()

    async def generate(self, request: GenerateRequest, take: TakeEvent) -> None:
        """Ask in the background; the TaskGroup ends it when the client leaves.

        The engine's own first event comes with the first token, so that a refusal still has its
        status.
        """
        if request.prompt_token_ids:
            raise InvalidRequest("send the prompt as text, not as token ids", param="prompt")
        async with self._turn, asyncio.TaskGroup() as tasks:
            queue: asyncio.Queue[AnyEvent | NodeError] = asyncio.Queue()
            self.events.current = queue
            tasks.create_task(self._ask_into(queue, request))
            is_begun = False
            async for event in _until_ended(queue):
                if not isinstance(event, TokensReceived | AnswerEnded):
                    continue
                if not is_begun:
                    is_begun = True
                    await take(Started(0, 0))
                await take(_translated(event))

    async def embed(
        self, model: str, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None
    ) -> tuple[Vectors, int]:
        """Nobody sells them: sessions are paid by generated tokens, and vectors have none."""
        del model, inputs, dimensions
        raise InvalidRequest(
            "embeddings are not sold here: sessions are paid by generated tokens only"
        )

    async def _ask_into(
        self, queue: asyncio.Queue[AnyEvent | NodeError], request: GenerateRequest
    ) -> None:
        """Errors go through the queue too, so that they come after the events before them."""
        question = Question((), request.max_tokens, rules=request)
        try:
            await self._ask(question, ModelId(request.model_id))
        except* NodeError as group:
            queue.put_nowait(leaves(group)[0])
        finally:
            self.events.current = None

    async def _ask(self, question: Question, model_id: ModelId) -> None:
        """On the kept session while it is of use, else on a new one; on others if hosts fail."""
        kept = self._record
        if kept is None or kept.head.model_id != model_id:
            kept = await self.renter.reopen(model_id)
        self._record = await ask_anywhere(self.renter, kept, model_id, question)

    async def close(self) -> None:
        """End the paid session, so that the rest of the deposit comes back."""
        if self._record is not None:
            with contextlib.suppress(NodeError):  # the host closes idle sessions by itself
                await self.renter.close(self._record)


@web.middleware
async def programs_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web page may send to loopback, too, and must not spend the renter's money.

    Browsers name the page in Origin; a page that had its own name resolve to loopback is known by
    the Host it asks for.
    """
    host = request.host.rpartition(":")[0] if request.url.explicit_port else request.host
    if "Origin" in request.headers or host.strip("[]") not in LOOPBACK_NAMES:
        return refusal(Unauthorised("web pages may not use this endpoint"))
    return await handler(request)


def _translated(event: TokensReceived | AnswerEnded) -> Produced | Finished:
    if isinstance(event, TokensReceived):
        return Produced((), event.text, event.logprobs)
    return Finished(
        _REASONS.get(event.finish_reason, "error"),
        event.tokens,
        cached_tokens=event.cached_tokens,
        prompt_tokens=event.prompt_tokens,
    )


async def _until_ended(queue: asyncio.Queue[AnyEvent | NodeError]) -> AsyncIterator[AnyEvent]:
    while True:
        event = await queue.get()
        if isinstance(event, NodeError):
            raise event
        yield event
        queue.task_done()
        if isinstance(event, AnswerEnded):
            return
