"""Relay one answer: engine -> journal -> renter, paced by the renter's signed receipts.

Order for every batch: journal it in `chain`, then send it. So what the renter holds is always
known here, and what it acknowledged is exactly what is billed. When `inference` or `chain`
restarts in mid-answer the relay waits and goes on after the last journalled token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import stamina

from nodeapp.core import delivery
from nodeapp.core.delivery import Delivery
from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import JobId
from nodeapp.network.streams import Stream
from nodeapp.p2p.beat import Beat
from nodeapp.p2p.engines import Engines
from nodeapp.rpc.chain import ChainClient
from nodeapp.service.logs import get_logger
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.envelope import GenerateCommand
from nodeapp.wire.ipc_chain import Authorised, ProducedRequest
from nodeapp.wire.ipc_inference import (
    Alternative,
    ChatMessage,
    Finished,
    GenerateRequest,
    Produced,
    Sampling,
    Started,
    TokenLogprob,
    ToolCall,
)

ENGINE_RESTART_SECONDS = 45.0
MAX_BATCH_TOKENS = 256
MAX_LOGPROB_TOKENS = 48
AHEAD_TOKENS = 256
"""Made and not sent; then the engine's stream is not read, so it pauses this sequence only."""
_log = get_logger(__name__)


@dataclass(slots=True)
class RelaySettings:
    """Pace of every relay; the beat is shared."""

    window_tokens: int
    beat: Beat
    receipt_timeout_seconds: float


@dataclass(slots=True)
class Answer:
    """State shared by the relay's two sides; owned by the event loop, changed by both."""

    job_id: JobId
    command: GenerateCommand
    authorised: Authorised
    renter: str
    delivery: Delivery
    ids: list[int]
    """Every id of this answer so far, delivered ones first."""
    texts: list[str] = field(default_factory=list)
    """One per unsent token batch: (ids, text) pairs share indices with `pieces`."""
    pieces: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    """As `texts`, one entry for each of `pieces`; empty when not asked for."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    is_cancelled: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    rest: asyncio.Future[None] | None = None
    """What the relay waits for before its next batch."""

    @property
    def most_tokens(self) -> int:
        """Of one frame, whose size logprobs make many times larger."""
        has_logprobs = self.command.sampling.top_logprobs is not None
        return MAX_LOGPROB_TOKENS if has_logprobs else MAX_BATCH_TOKENS


def begin_answer(
    job_id: JobId, command: GenerateCommand, authorised: Authorised, renter: str, window: int
) -> Answer:
    """An answer at the place the ledger says: new, or after what was acknowledged."""
    first = authorised.first_token
    ids = list(authorised.delivered_ids)
    return Answer(
        job_id, command, authorised, renter, delivery.begin(first, first + len(ids), window), ids
    )


class Relay:
    """Runs one Answer; the conversation feeds it receipts and cancels."""

    def __init__(
        self,
        stream: Stream,
        chain: ChainClient,
        inference: Engines,
        settings: RelaySettings,
        on_first_token: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._chain = chain
        self._inference = inference
        self._settings = settings
        self._on_first_token = on_first_token

    async def run(self, answer: Answer) -> None:
        """Until everything was sent and acknowledged, cancelled, or the renter stopped reading.

        Raises:
            NodeError: what the renter is told.
        """
        self._settings.beat.enter()
        try:
            async with asyncio.TaskGroup() as tasks:
                engine = tasks.create_task(self._pull(answer))
                await self._push(answer, engine)
                engine.cancel()
        finally:
            self._settings.beat.leave()

    def acknowledge(self, answer: Answer, tokens: int) -> None:
        """A receipt was accepted; one that says nothing new does not prolong any deadline."""
        if tokens > answer.delivery.acknowledged:
            answer.delivery = delivery.acknowledged(answer.delivery, tokens)
            answer.changed.set()

    def cancel(self, answer: Answer) -> None:
        """The renter wants no more: stop the engine, drop what was not sent."""
        answer.is_cancelled = True
        _end_rest(answer)

    async def _pull(self, answer: Answer) -> None:
        """Engine side; survives restarts of the inference process, each with its own deadline."""
        while not answer.delivery.finish_reason:
            async for attempt in stamina.retry_context(
                on=Unavailable,
                attempts=None,
                timeout=ENGINE_RESTART_SECONDS,
                wait_initial=0.2,
                wait_max=1.0,
            ):
                with attempt:
                    await self._generate_further(answer)

    async def _generate_further(self, answer: Answer) -> None:
        """Until the end, or until the engine is lost after it made something."""
        before = len(answer.ids)
        try:
            await self._generate(answer)
        except Unavailable as error:
            if len(answer.ids) == before:
                raise
            _log.warning("engine lost in mid-answer", job_id=answer.job_id, error=error.message)

    async def _generate(self, answer: Answer) -> None:
        left = answer.authorised.max_tokens - len(answer.ids)
        if left <= 0:
            self._finish(answer, "length")
            return
        request = _request(answer, left)
        async with aclosing(self._inference.generate(request)) as events:
            async for event in events:
                match event:
                    case Started(prompt_tokens=prompt_tokens):
                        answer.prompt_tokens = prompt_tokens
                    case Produced():
                        _keep(answer, event)
                    case Finished(reason=reason, cached_tokens=cached):
                        answer.cached_tokens = max(answer.cached_tokens, cached)
                        self._finish(answer, reason)
                answer.changed.set()
                await self._keep_pace(answer)
        if not answer.delivery.finish_reason:
            raise Unavailable("inference ended the stream without a reason")

    async def _keep_pace(self, answer: Answer) -> None:
        """A renter that does not acknowledge gets no computing time either."""
        ahead = max(AHEAD_TOKENS, self._settings.window_tokens)
        while answer.delivery.made - answer.delivery.sent >= ahead:
            answer.changed.clear()
            await answer.changed.wait()

    def _finish(self, answer: Answer, reason: str) -> None:
        answer.delivery = delivery.finished(answer.delivery, reason)
        _end_rest(answer)

    async def _push(self, answer: Answer, engine: asyncio.Task[None]) -> None:
        """Renter side: batches while the window allows, then the end; the first token at once."""
        is_first = not answer.authorised.delivered_ids
        sent_at: float | None = None
        while not answer.is_cancelled and not (answer.delivery.finish_reason and not answer.pieces):
            if not answer.pieces or not self._fits(answer):
                await self._wait(answer)
            elif await self._rest(answer, sent_at):
                sent_at = asyncio.get_running_loop().time()
                await self._send_batch(answer)
                if is_first:
                    is_first = False
                    self._on_first_token()
        if answer.is_cancelled:
            engine.cancel()
            answer.delivery = delivery.cancelled(answer.delivery)
        await self._send_end(answer)
        while answer.delivery.sent > answer.delivery.acknowledged:
            await self._wait(answer)

    def _fits(self, answer: Answer) -> bool:
        return len(answer.pieces[0]) <= answer.delivery.sendable

    async def _send_batch(self, answer: Answer) -> None:
        ids: list[int] = []
        text = ""
        logprobs: list[pb.TokenLogprob] = []
        most = min(answer.delivery.sendable, answer.most_tokens)
        while answer.pieces and len(ids) + len(answer.pieces[0]) <= most:
            ids.extend(answer.pieces.pop(0))
            text += answer.texts.pop(0)
            logprobs += map(_logprob, answer.logprobs.pop(0))
        first = answer.delivery.sent
        await self._chain.produced(
            ProducedRequest(
                job_id=answer.job_id,
                request_id=answer.command.request_id,
                first_token=first,
                token_ids=tuple(ids),
            )
        )
        answer.delivery = delivery.sent(answer.delivery, len(ids))
        answer.changed.set()
        tokens = pb.Tokens(first_token=first, ids=ids, text=text, logprobs=logprobs)
        await self._stream.write_frame(envelope.encode(tokens=tokens))

    async def _rest(self, answer: Answer, sent_at: float | None) -> bool:
        """Let tokens gather, unless the engine is done; whether there is still to be sent."""
        if sent_at is not None and not answer.delivery.finish_reason:
            answer.rest = self._settings.beat.rest(sent_at)
            if answer.rest is not None:
                await answer.rest
        return not answer.is_cancelled

    async def _wait(self, answer: Answer) -> None:
        """Until something changed; a renter that owes a receipt has a deadline."""
        answer.changed.clear()
        waits_for_renter = answer.delivery.is_waiting_for_renter or answer.is_cancelled
        if not waits_for_renter:
            await answer.changed.wait()
            return
        limit = self._settings.receipt_timeout_seconds
        try:
            async with asyncio.timeout(limit):
                await answer.changed.wait()
        except TimeoutError as error:
            owed = answer.delivery.sent - answer.delivery.acknowledged
            raise Unavailable(f"no receipt for {owed} tokens inside {limit:g} s") from error

    async def _send_end(self, answer: Answer) -> None:
        sent = answer.delivery.sent - answer.delivery.first_token
        end = pb.End(
            request_id=answer.command.request_id,
            finish_reason=answer.delivery.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=sent,
            cached_tokens=answer.cached_tokens,
        )
        await self._stream.write_frame(envelope.encode(end=end))


def _end_rest(answer: Answer) -> None:
    """There is no more to come that could be gathered."""
    answer.changed.set()
    if answer.rest is not None and not answer.rest.done():
        answer.rest.set_result(None)


def _keep(answer: Answer, made: Produced) -> None:
    """Queue what was made, in pieces that fit the window; the text goes with the last one.

    The engine merges what piled up, and holds tokens back that may begin a stop string, so one
    event may have more tokens than may ever be on their way at once.
    """
    size = min(answer.delivery.window, answer.most_tokens)
    starts = range(0, len(made.token_ids), size)
    answer.ids.extend(made.token_ids)
    answer.pieces.extend(made.token_ids[start : start + size] for start in starts)
    answer.texts.extend([*[""] * (len(starts) - 1), made.text])
    answer.logprobs.extend(made.logprobs[start : start + size] for start in starts)
    answer.delivery = delivery.made(answer.delivery, len(made.token_ids))


def _logprob(entry: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        chosen=_alternative(entry.chosen), top=[_alternative(other) for other in entry.top]
    )


def _alternative(entry: Alternative) -> pb.Alternative:
    return pb.Alternative(id=entry.token_id, piece=entry.piece, logprob=entry.logprob)


def _request(answer: Answer, left: int) -> GenerateRequest:
    command = answer.command
    choice = command.sampling
    return GenerateRequest(
        request_id=command.request_id,
        model_id=command.model_id,
        messages=tuple(_turn(message) for message in command.messages),
        prompt_text=command.prompt_text,
        continue_token_ids=(*command.continue_ids, *answer.ids),
        max_tokens=left,
        sampling=Sampling(
            temperature=choice.temperature,
            top_k=choice.top_k,
            top_p=choice.top_p or 1.0,
            min_p=choice.min_p,
            seed=choice.seed,
            typical_p=choice.typical_p or 1.0,
            repeat_penalty=choice.repeat_penalty or 1.0,
            frequency_penalty=choice.frequency_penalty,
            presence_penalty=choice.presence_penalty,
            logit_bias=choice.logit_bias,
            top_logprobs=choice.top_logprobs,
        ),
        tools=command.tools,
        tool_choice=command.tool_choice,
        tool_name=command.tool_name,
        json_schema=command.json_schema,
        stop=command.stop,
        cache_scope=answer.renter,
        renter=answer.renter,
    )


def _turn(message: envelope.ChatMessage) -> ChatMessage:
    calls = tuple(ToolCall(*call) for call in message.tool_calls)
    return ChatMessage(message.role, message.content, calls, message.tool_call_id)  # type: ignore[arg-type]  # the envelope has checked the role
