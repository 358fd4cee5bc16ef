"""Engine: requests in, token events out; one decode thread owns the llama.cpp context.

The asyncio side checks and tokenises (prompts.py), the thread (decoder.py) batches, decodes and
samples. They talk by one command queue and one call_soon_threadsafe per step. A reader that does
not keep up pauses its own sequence; leaving the iterator frees the sequence at the next step.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from msgspec import structs

from nodeapp.core.errors import Busy, NotFound, TooLarge, Unavailable
from nodeapp.core.model_card import ModelCard
from nodeapp.inference.admission import Load
from nodeapp.inference.commands import Cancel, Command, Credit, Stop, Submit
from nodeapp.inference.constraint import ConstraintMaker, GrammarConstraint
from nodeapp.inference.decoder import Decoder, DecoderLimits
from nodeapp.inference.llama import LlamaModel, LoadOptions
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.prompts import Prompts
from nodeapp.inference.sampling import SamplingParameters
from nodeapp.inference.scheduler import Limits
from nodeapp.service.clock import Clock
from nodeapp.wire.ipc_inference import Event, Finished, GenerateRequest, Produced, Started

CPU_IDLE_ROWS = 128
"""On a CPU a cached prefix of 1000 tokens makes every other row 0.3 ms slower (2.4 ms without; 8
rows, 135M model); to park it and to fetch it again takes 8 ms, to compute it again 1200."""
JOIN_SECONDS = 5.0
_BUSY_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`context_length`: limit of one request, prompt and answer together, in tokens."""

    context_length: int
    max_sequences: int
    prefill_chunk_tokens: int
    queue_requests: int
    slow_reader_seconds: float
    has_speculation: bool = True
    queue_seconds: float = 120.0
    """What would wait longer for its first token is refused at once."""
    public_prefixes: tuple[str, ...] = ()
    """System prompts whose cells all renters may share."""


@dataclass(slots=True)
class _Stream:
    """Events of one request on the asyncio side, filled by the thread's call-backs."""

    events: deque[Event] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Start it, ask `generate` any number of times at once, stop it."""

    def __init__(
        self, card: ModelCard, load: LoadOptions, options: EngineOptions, *, clock: Clock
    ) -> None:
        self._card = card
        self._load = load
        self._options = options
        self._clock = clock
        self._streams: dict[int, _Stream] = {}
        self._numbers = itertools.count(1)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._failure = ""
        self._is_admitting = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()
        self._decoder: Decoder | None = None
        self._model: LlamaModel | None = None
        self._prompts: Prompts | None = None
        # Asked for by the first schema: there is no model yet.
        self._constraints = ConstraintMaker(lambda: self.prompts.vocabulary())  # noqa: PLW0108
        self._public: tuple[tuple[int, ...], ...] = ()
        self.context_length = options.context_length

    @property
    def open_requests(self) -> int:
        """Requests accepted and not finished."""
        return len(self._streams)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation; empty before start."""
        return tuple(sorted(self._model.end_token_ids)) if self._model is not None else ()

    @property
    def prompts(self) -> Prompts:
        """Texts and ids of the loaded model.

        Raises:
            Unavailable: none is loaded.
        """
        if self._prompts is None:
            raise Unavailable("the engine is not started")
        return self._prompts

    async def start(self, metrics: InferenceMetrics) -> None:
        """Load the model; requests are accepted when this returns.

        Raises:
            InvalidRequest: llama.cpp refuses the file.
            Unavailable: not enough memory for the context.
        """
        loop = asyncio.get_running_loop()
        model = self._model = await asyncio.to_thread(LlamaModel, self._load)
        self.context_length = min(
            self._options.context_length, model.kv_tokens, model.trained_context_length
        )
        prompts = self._prompts = Prompts(self._card, model, self.context_length)
        await prompts.warm_up()
        public = self._options.public_prefixes
        self._public = tuple([await prompts.beginning(text) for text in public])

        def post(events: list[tuple[int, Event]]) -> None:
            loop.call_soon_threadsafe(self._deliver, events)

        def ended(failure: str) -> None:
            loop.call_soon_threadsafe(self._thread_ended, failure)

        self._decoder = Decoder(
            model,
            self._limits(model),
            self._commands,
            clock=self._clock,
            metrics=metrics,
            post=post,
        )
        self._decoder.start(ended)
        self._is_admitting = True

    def _limits(self, model: LlamaModel) -> DecoderLimits:
        """While others decode, prefill gets a quarter: it is what they wait for.

        On a CPU it gets a batch of its own. Measured with 10 running sequences of 130 cells and 64
        rows of prefill, 135M model: one batch 651 ms, two 497; likely since attention works on
        tiles of rows and cells, which decode rows of many sequences leave nothing to skip in.
        """
        options = self._options
        limits = Limits(
            max_sequences=options.max_sequences,
            slots=self._load.sequences,
            kv_tokens=model.kv_tokens,
            prefill_tokens=options.prefill_chunk_tokens,
            prefill_tokens_while_decoding=max(16, options.prefill_chunk_tokens // 4),
            idle_rows=CPU_IDLE_ROWS if self._load.gpu_layers == 0 else 0,
            parked_tokens=model.kv_tokens // 2 if self._load.gpu_layers == 0 else 0,
            is_mixed=self._load.gpu_layers != 0,
        )
        return DecoderLimits(limits, options.slow_reader_seconds, options.has_speculation)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Started, Produced…, Finished. Close the iterator to cancel (contextlib.aclosing).

        Raises:
            InvalidRequest: no prompt, two prompts, bad token id, template or schema refused.
            NotFound: another model than the one loaded.
            TooLarge: the prompt does not leave room for one token.
            Busy: the queue is full.
            Unavailable: stopping, or the decode thread ended.
        """
        self._check_open(request)
        prompt = await self.prompts.ids(request)
        constraint = await self._constraints.make(request)
        submit = self._submission(request, prompt, constraint)
        self._check_open(request)
        self._check_wait(len(prompt))
        stream = self._streams[submit.number] = _Stream()
        self._idle.clear()
        self._commands.put(submit)
        try:
            yield Started(len(prompt), self.context_length)
            async for event in self._events(submit.number, stream):
                yield event
        finally:
            del self._streams[submit.number]
            if not self._streams:
                self._idle.set()
            self._commands.put(Cancel(submit.number))

    async def wait_idle(self) -> None:
        """Refuse new requests and wait until the open ones are finished."""
        self._is_admitting = False
        await self._idle.wait()

    async def wait_failed(self) -> str:
        """Wait until the decode thread has ended; returns why, "" after stop()."""
        await self._ended.wait()
        return self._failure

    async def stop(self) -> None:
        """End the thread, free the model, end the template child. Safe before start()."""
        self._is_admitting = False
        if self._prompts is not None:
            await self._prompts.close()
        await self._constraints.close()
        if self._decoder is not None and self._model is not None:
            self._commands.put(Stop())
            self._model.abort()
            await asyncio.to_thread(self._decoder.join, JOIN_SECONDS)
            self._decoder = None
        if self._model is not None:
            await asyncio.to_thread(self._model.close)  # a long text may just be tokenised
            self._model = self._prompts = None

    async def _events(self, number: int, stream: _Stream) -> AsyncIterator[Event]:
        while True:
            await stream.arrived.wait()
            stream.arrived.clear()
            taken = list(stream.events)
            stream.events.clear()
            self._commands.put(Credit(number, len(taken)))
            for event in _merged(taken):
                yield event
                if isinstance(event, Finished):
                    return
            if self._ended.is_set():
                raise Unavailable("the engine has stopped", retry_after_seconds=1.0)

    def _check_open(self, request: GenerateRequest) -> None:
        if not self._is_admitting or self._ended.is_set():
            raise Unavailable("the engine takes no requests", retry_after_seconds=1.0)
        if request.model_id and request.model_id != self._card.model_id:
            raise NotFound(f"model {request.model_id} is not served here")
        limit = self._options.queue_requests + self._options.max_sequences
        if len(self._streams) >= limit:
            raise Busy(
                f"{len(self._streams)} requests are open, limit {limit}",
                retry_after_seconds=max(_BUSY_RETRY_SECONDS, self.wait_seconds(0)),
            )

    def _check_wait(self, prompt_tokens: int) -> None:
        """Refuse early what would only wait: the asker finds another host sooner."""
        wait, limit = self.wait_seconds(prompt_tokens), self._options.queue_seconds
        if self._load_now.waiting and wait > limit:
            raise Busy(
                f"the first token would take {wait:.0f} s, limit {limit:g} s",
                retry_after_seconds=max(_BUSY_RETRY_SECONDS, wait - limit),
            )

    def wait_seconds(self, prompt_tokens: int) -> float:
        """How long a new request with such a prompt would wait for its first token, roughly."""
        return self._load_now.wait_seconds(prompt_tokens, self._options.max_sequences)

    @property
    def _load_now(self) -> Load:
        return self._decoder.load if self._decoder is not None else Load()

    def _submission(
        self, request: GenerateRequest, prompt: list[int], constraint: GrammarConstraint | None
    ) -> Submit:
        length = len(prompt) + len(request.continue_token_ids)
        room = self.context_length - length
        if room < 1:
            raise TooLarge(
                f"prompt of {length} tokens does not fit the context of "
                f"{self.context_length} tokens"
            )
        self.prompts.check_ids([token_id for token_id, _bias in request.sampling.logit_bias])
        return Submit(
            number=next(self._numbers),
            prompt_ids=tuple(prompt),
            answer_ids=request.continue_token_ids,
            max_tokens=min(request.max_tokens, room),
            sampling=SamplingParameters(**structs.asdict(request.sampling)),
            stop=request.stop,
            scope=request.cache_scope,
            accepted_at=self._clock.monotonic_seconds(),
            public=max(
                (len(ids) for ids in self._public if ids == tuple(prompt[: len(ids)])), default=0
            ),
            renter=request.renter,
            weight=request.weight,
            constraint=constraint,
        )

    def _deliver(self, events: list[tuple[int, Event]]) -> None:
        for number, event in events:
            stream = self._streams.get(number)
            if stream is not None:
                stream.events.append(event)
                stream.arrived.set()

    def _thread_ended(self, failure: str) -> None:
        self._failure = failure
        self._ended.set()
        for stream in self._streams.values():
            stream.arrived.set()


def _merged(events: list[Event]) -> list[Event]:
    """Neighbouring Produced events as one: what piled up is sent in one piece."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, Produced) and isinstance(last, Produced):
            merged[-1] = Produced(
                last.token_ids + event.token_ids,
                last.text + event.text,
                last.logprobs + event.logprobs,
                last.fingerprints + event.fingerprints,
            )
        else:
            merged.append(event)
    return merged
