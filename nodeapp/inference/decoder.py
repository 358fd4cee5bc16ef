"""The decode thread: commands -> plan -> one llama_decode -> samples -> events, again and again.

Nothing else touches the context. A reader's debt is the number of events it has not taken yet;
at MAX_DEBT its sequence is left out of the batches, and after `slow_reader_seconds` it is ended.

What shares a batch or the cache may change a sequence's logits a little, so that a near tie falls
the other way; nothing crosses over. llama.cpp picks its CPU kernels by the number of rows (up to
0.85 on logits around 25); our own for Q4_1 and Q8_0 (decision 0012) give a row the same in every
batch. Attention is left: it adds in the order of KV cells, by tiles and threads. Measured with
0.3.36, our kernels, 135M model, 400 cells, logits around 32: beside others in a batch 0 with one
thread and 0.5 with two, behind others' cells 1.2, the prompt computed in other parts 0.7.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from nodeapp.core.errors import Corrupt, NodeError, Unavailable
from nodeapp.inference.admission import Load, SpeedMeter
from nodeapp.inference.commands import Cancel, Command, Credit, Stop, Submit
from nodeapp.inference.job import Job
from nodeapp.inference.llama import Aborted, LlamaModel, NoRoom
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.request import Request
from nodeapp.inference.sampling import Logits
from nodeapp.inference.scheduler import Limits, Scheduler
from nodeapp.inference.sequence_memory import SequenceMemory
from nodeapp.inference.speculation import DRAFT_LENGTHS, SpeculationCost
from nodeapp.inference.step import Rows, Step
from nodeapp.inference.text import Released
from nodeapp.service.clock import Clock
from nodeapp.wire.ipc_inference import Event, Finished, FinishReason

MAX_DEBT = 32
RESUME_DEBT = 8
GATHER_SECONDS = 0.04
"""Tokens between an answer's first and its last gather for so long before they are handed over:
every hand-over wakes two processes, which on a small machine stops the threads that compute."""
PUBLISH_SECONDS = 0.1
"""So often the figures of the moment are told while there is work."""

Post = Callable[[list[tuple[int, Event]]], None]


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """The scheduler's budgets and how long a slow reader may hold cells."""

    scheduler: Limits
    slow_reader_seconds: float
    has_speculation: bool


class Decoder:
    """Owns the thread; made and joined by Engine."""

    def __init__(
        self,
        model: LlamaModel,
        limits: DecoderLimits,
        commands: queue.SimpleQueue[Command],
        *,
        clock: Clock,
        metrics: InferenceMetrics,
        post: Post,
    ) -> None:
        self._model = model
        self._limits = limits
        self._commands = commands
        self._clock = clock
        self._metrics = metrics
        self._post = post
        self._scheduler = Scheduler(limits.scheduler)
        self._cost: SpeculationCost | None = None
        self._memory = SequenceMemory(model)
        self._meter = SpeedMeter()
        self.load = Load()
        """Replaced whole now and then; any thread may read it."""
        self._requests: dict[int, Request] = {}
        self._events: list[tuple[int, Event]] = []
        self._is_urgent = False
        self._sent_at = self._published_at = 0.0
        self._is_idle = True
        self._thread: threading.Thread | None = None

    def start(self, ended: Callable[[str], None]) -> None:
        """Start the thread; `ended` is called from it once, with the reason or ""."""
        self._thread = threading.Thread(target=self._run, args=(ended,), name="decode", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end.

        Raises:
            Corrupt: it did not; the context must not be freed under it.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise Corrupt(f"decode thread did not end inside {seconds:g} s")

    def _run(self, ended: Callable[[str], None]) -> None:
        failure = "decode thread ended by a bug"
        try:
            if self._limits.has_speculation:
                most = self._limits.scheduler.prefill_tokens
                sizes = [1 + length for length in DRAFT_LENGTHS if length < most]
                self._cost = SpeculationCost(self._model.batch_costs(sizes or [2]))
                self._metrics.row_cost.set((self._cost.of(8) - 1) / 7)
            while self._take_commands():
                self._turn()
            failure = ""
        except Aborted:
            failure = ""
        except NodeError as error:
            failure = error.message
        finally:
            ended(failure)

    def _take_commands(self) -> bool:
        """Handle what has come; blocks while there is nothing to compute. False: Stop."""
        while self._is_idle or not self._commands.empty():
            try:
                command = self._commands.get(timeout=self._patience_seconds())
            except queue.Empty:
                return True
            self._is_idle = False
            if not self._handle(command):
                return False
        return True

    def _handle(self, command: Command) -> bool:
        match command:
            case Submit():
                self._submit(command)
            case Cancel(number):
                if self._requests.pop(number, None) is not None:
                    self._scheduler.finish(number)
                    self._metrics.finished.labels("cancelled").inc()
            case Credit(number, events):
                self._credit(number, events)
            case Stop():
                return False
            case _:
                assert_never(command)
        return True

    def _submit(self, submit: Submit) -> None:
        token_ids = (*submit.prompt_ids, *submit.answer_ids)
        count = len(token_ids)
        job = Job(
            submit.number,
            token_ids,
            count + submit.max_tokens,
            submit.scope,
            public=submit.public,
            renter=submit.renter,
            weight=submit.weight,
        )
        self._scheduler.submit(job)
        self._requests[submit.number] = Request.of(submit)
        self._metrics.prompt_tokens.inc(count)

    def _credit(self, number: int, events: int) -> None:
        request = self._requests.get(number)
        if request is None:
            return
        request.debt -= events
        if request.paused_at is not None and request.debt <= RESUME_DEBT:
            request.paused_at = None
            self._scheduler.pause(number, is_paused=False)

    def _patience_seconds(self) -> float | None:
        """Until the first paused request runs out of time; None: nothing to wait for."""
        pauses = [r.paused_at for r in self._requests.values() if r.paused_at is not None]
        if not pauses:
            return None
        until = min(pauses) + self._limits.slow_reader_seconds
        return max(0.0, until - self._clock.monotonic_seconds())

    def _turn(self) -> None:
        began = self._clock.monotonic_seconds()
        self._end_slow_readers(began)
        step = self._scheduler.plan()
        self._is_idle = not step.rows
        if self._apply_memory(step) and step.rows:
            self._compute(step)
            self._measure(step, self._clock.monotonic_seconds() - began)
        self._send()

    def _measure(self, step: Step, seconds: float) -> None:
        self._metrics.step_seconds.observe(seconds)
        rows = sum(len(rows.token_ids) for rows in step.rows)
        decode = sum(len(one.token_ids) for one in step.rows if one.is_decode)
        self._meter.step(prefill_tokens=rows - decode, decode_rows=decode, seconds=seconds)

    def _send(self) -> None:
        """First and last tokens at once, and all there is before the thread waits."""
        now = self._clock.monotonic_seconds()
        if not (self._is_urgent or self._is_idle or now - self._sent_at >= GATHER_SECONDS):
            return
        if self._is_idle or now - self._published_at >= PUBLISH_SECONDS:
            self._publish()
            self._published_at = now
        self._sent_at = now
        if self._events:
            self._post(self._events)
            self._events, self._is_urgent = [], False

    def _publish(self) -> None:
        """Tell the figures of the moment; every time would cost as much as choosing a token."""
        self.load = self._meter.load(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            prefill_tokens=self._scheduler.prefill_tokens,
        )
        self._metrics.running.set(self._scheduler.running)
        self._metrics.waiting.set(self._scheduler.waiting)
        kv_tokens = self._scheduler.kv_tokens
        self._metrics.kv_tokens.set(kv_tokens)
        self._metrics.parked_tokens.set(self._scheduler.parked_tokens)
        self._metrics.kv_usage.set(kv_tokens / self._limits.scheduler.kv_tokens)

    def _apply_memory(self, step: Step) -> bool:
        """False: a sequence was lost (some models cannot drop a part of one); plan again."""
        lost = self._memory.apply(step.memory)
        if not self._memory.can_take_back:
            self._cost = None  # guesses that are wrong must be taken back
        owners = {self._scheduler.lost(slot) for slot in lost}
        for number, found in step.reused:
            tokens = found if number not in owners else 0
            self._metrics.cached_tokens.inc(tokens)
            request = self._requests[number]
            request.cached = min(tokens, len(request.submit.prompt_ids))
            request.admitted_at = self._clock.monotonic_seconds()
        return not lost

    def _compute(self, step: Step) -> None:
        try:
            logits = self._model.decode(step.rows)
        except NoRoom as error:
            # Reservations make this impossible unless the cache is fragmented by the backend.
            if not self._scheduler.drop_cache():
                raise Corrupt("llama.cpp found no KV cells inside the reservation") from error
            return
        self._scheduler.done(step)
        self._metrics.steps.inc()
        self._metrics.busy_sequences.inc(len(step.rows))
        self._metrics.rows.inc(sum(len(rows.token_ids) for rows in step.rows))
        begin = 0
        for rows in step.rows:
            if rows.is_last:
                end = begin + 1 + rows.drafts
                self._sample(rows, logits[begin:end])
                begin = end

    def _sample(self, rows: Rows, logits: Sequence[Logits]) -> None:
        """Choose token by token as long as the guesses are right; then one more is known."""
        request = self._requests[rows.job_id]
        guesses = rows.token_ids[len(rows.token_ids) - rows.drafts :]
        chosen: list[int] = []
        for row, guess in zip(logits, (*guesses, None), strict=True):
            token_id = self._choose(request, row)
            if token_id is None:
                break
            chosen.append(token_id)
            if token_id != guess:
                break
        if rows.drafts:
            self._metrics.drafted_tokens.inc(rows.drafts)
            self._metrics.accepted_tokens.inc(max(0, len(chosen) - 1))
        if rows.job_id in self._requests:
            cost, running = self._cost, self._scheduler.running
            draft = request.draft(chosen, cost, running) if cost is not None else ()
            self._scheduler.advance(rows.job_id, chosen, draft)

    def _choose(self, request: Request, logits: Logits) -> int | None:
        """The next token, delivered as far as it may be; None: with it the answer has ended."""
        try:
            choice = request.sampler.choose(logits, request.position)
            token_id = choice.token_id
            request.sampler.accept(token_id)
        except Unavailable as error:
            self._finish(request, "error", request.text.flush(), error.message)
            return None
        if request.chosen == 0:
            now = request.first_at = self._clock.monotonic_seconds()
            self._metrics.first_token.observe(now - request.submit.accepted_at)
            self._metrics.prompt_seconds.inc(now - (request.admitted_at or now))
        if token_id in self._model.end_token_ids:
            self._finish(request, "stop", request.text.flush())
            return None
        request.chosen += 1
        request.position += 1
        self._metrics.produced_tokens.inc()
        if request.submit.sampling.is_detailed:
            request.choices.append(choice)
        released = request.text.feed(token_id, self._model.piece(token_id))
        if released.is_stopped:
            self._finish(request, "stop", released)
            return None
        self._produced(request, released)
        if request.sampler.is_finished:
            self._finish(request, "stop", request.text.flush())
        elif request.chosen >= request.submit.max_tokens:
            self._finish(request, "length", request.text.flush())
        else:
            return token_id
        return None

    def _produced(self, request: Request, released: Released) -> None:
        if not released.token_ids:
            return
        number = request.submit.number
        self._is_urgent |= request.delivered == 0
        request.delivered += len(released.token_ids)
        request.debt += 1
        self._metrics.delivered_tokens.inc(len(released.token_ids))
        self._events.append((number, request.event(released, self._model.piece)))
        if request.debt >= MAX_DEBT and request.paused_at is None:
            request.paused_at = self._clock.monotonic_seconds()
            self._scheduler.pause(number, is_paused=True)

    def _finish(
        self, request: Request, reason: FinishReason, released: Released, detail: str = ""
    ) -> None:
        self._produced(request, released)
        number = request.submit.number
        self._events.append((number, Finished(reason, request.delivered, detail, request.cached)))
        self._is_urgent = True
        self._metrics.finished.labels(reason).inc()
        self._meter.answer(request.delivered)
        self._metrics.answered(
            self._clock.monotonic_seconds(),
            accepted_at=request.submit.accepted_at,
            first_at=request.first_at,
            tokens=request.chosen,
        )
        self._scheduler.finish(number)
        del self._requests[number]

    def _end_slow_readers(self, now: float) -> None:
        limit = self._limits.slow_reader_seconds
        for request in list(self._requests.values()):
            if request.paused_at is not None and now - request.paused_at >= limit:
                nothing = Released((), "")
                self._finish(request, "cancelled", nothing, f"nothing was read for {limit:g} s")
