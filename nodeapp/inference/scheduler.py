"""Which tokens go into the next batch: continuous batching over a shared KV cache. Pure.

Rules: decode rows always first; what is left of the step goes to prefill, shortest remaining
first with ageing, so nobody starves. A request is admitted in order of arrival when a sequence
slot is free and its whole reservation (prompt + answer) fits, so a running one never runs out of
KV cells. Finished sequences stay as prefix cache until their cells are wanted (least recently
used first); a prefix is only shared inside one cache scope, else its timing would leak prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_SHARED_TOKENS = 16
"""A shorter common prefix is not worth a memory operation."""
AGEING_TOKENS = 32
"""A waiting prefill gains this much priority with every step."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets, in tokens unless named otherwise; `slots` >= `max_sequences`."""

    max_sequences: int
    slots: int
    kv_tokens: int
    prefill_tokens: int
    prefill_tokens_while_decoding: int


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its context so far, and every KV cell it may ever need."""

    job_id: int
    token_ids: tuple[int, ...]
    reserved_tokens: int
    scope: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Drop the slot's cells from position `start` on."""

    slot: int
    start: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Share the source's cells [0, end) with the empty target."""

    source: int
    target: int
    end: int


MemoryOperation = Remove | Copy


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive tokens of one sequence; `is_last`: logits of the final one are wanted."""

    job_id: int
    slot: int
    start: int
    token_ids: tuple[int, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Memory operations in order, then one batch. `reused`: cached tokens per admitted job."""

    memory: tuple[MemoryOperation, ...]
    rows: tuple[Rows, ...]
    reused: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class _Slot:
    index: int
    scope: str = ""
    tokens: list[int] = field(default_factory=list)
    owner: int | None = None
    used_at: int = 0


@dataclass(slots=True)
class _Running:
    job: Job
    slot: _Slot
    context: list[int]
    admitted_at: int
    is_paused: bool = False

    @property
    def remaining(self) -> int:
        return len(self.context) - len(self.slot.tokens)


class Scheduler:
    """The one owner of sequence slots and KV cells; deterministic, no clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = [_Slot(index) for index in range(limits.slots)]
        self._waiting: deque[Job] = deque()
        self._running: dict[int, _Running] = {}
        self._memory: list[MemoryOperation] = []
        self._reused: list[tuple[int, int]] = []
        self._step = 0

    @property
    def waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def kv_tokens(self) -> int:
        """Cells held: reservations of running sequences and the prefix cache."""
        return sum(running.job.reserved_tokens for running in self._running.values()) + sum(
            len(slot.tokens) for slot in self._slots if slot.owner is None
        )

    def submit(self, job: Job) -> None:
        """Queue a job. Its reservation must fit the whole cache, and its context is not empty."""
        if not job.token_ids or not len(job.token_ids) < job.reserved_tokens:
            raise ValueError(f"job {job.job_id} reserves {job.reserved_tokens} tokens")
        if job.reserved_tokens > self._limits.kv_tokens:
            raise ValueError(f"job {job.job_id} can never fit {self._limits.kv_tokens} cells")
        self._waiting.append(job)

    def pause(self, job_id: int, *, is_paused: bool) -> None:
        """Leave a job out of the batches, or take it in again; its cells stay."""
        if job_id in self._running:
            self._running[job_id].is_paused = is_paused

    def append(self, job_id: int, token_id: int) -> None:
        """A chosen token: it goes into the next batch."""
        self._running[job_id].context.append(token_id)

    def finish(self, job_id: int) -> None:
        """Forget a job in whatever state; its cells become prefix cache of its scope."""
        running = self._running.pop(job_id, None)
        if running is None:
            self._waiting = deque(job for job in self._waiting if job.job_id != job_id)
            return
        slot = running.slot
        slot.owner, slot.used_at = None, self._step
        if not slot.scope:
            self._clear(slot)

    def lost(self, slot: int) -> None:
        """The slot's cells could not be kept (some models cannot drop a part): all are gone."""
        self._slots[slot].tokens = []

    def drop_cache(self) -> bool:
        """Give up the whole prefix cache; False when there was none."""
        idle = [slot for slot in self._slots if slot.owner is None and slot.tokens]
        for slot in idle:
            self._clear(slot)
        return bool(idle)

    def plan(self) -> Step:
        """The next step. Its memory operations must be carried out even without rows."""
        self._step += 1
        while self._waiting and self._admit(self._waiting[0]):
            self._waiting.popleft()
        active = [running for running in self._running.values() if not running.is_paused]
        decode = [running for running in active if running.remaining == 1]
        rows = [self._rows(running, 1) for running in decode]
        rows += self._prefill([running for running in active if running.remaining > 1], decode)
        step = Step(tuple(self._memory), tuple(rows), tuple(self._reused))
        self._memory, self._reused = [], []
        return step

    def done(self, step: Step) -> None:
        """The batch was computed: its tokens are in the cache now."""
        for rows in step.rows:
            running = self._running.get(rows.job_id)
            if running is not None:
                running.slot.tokens += rows.token_ids

    def _prefill(self, prefill: list[_Running], decode: Sequence[_Running]) -> list[Rows]:
        limits = self._limits
        budget = limits.prefill_tokens_while_decoding if decode else limits.prefill_tokens
        prefill.sort(key=lambda r: r.remaining - (self._step - r.admitted_at) * AGEING_TOKENS)
        rows: list[Rows] = []
        for running in prefill:
            count = min(budget, running.remaining)
            if count > 0:
                rows.append(self._rows(running, count))
            budget -= count
        return rows

    def _rows(self, running: _Running, count: int) -> Rows:
        start = len(running.slot.tokens)
        return Rows(
            running.job.job_id,
            running.slot.index,
            start,
            tuple(running.context[start : start + count]),
            is_last=count == running.remaining,
        )

    def _admit(self, job: Job) -> bool:
        if len(self._running) >= self._limits.max_sequences:
            return False
        source, shared = self._longest_prefix(job)
        target = source if source is not None and source.owner is None else None
        if not self._make_room(job, target):
            return False
        if target is None:
            target = self._free_slot()
            if source is not None:
                self._memory.append(Copy(source.index, target.index, shared))
                target.tokens = list(source.tokens[:shared])
        elif shared < len(target.tokens):
            self._memory.append(Remove(target.index, shared))
            del target.tokens[shared:]
        target.owner, target.scope = job.job_id, job.scope
        self._running[job.job_id] = _Running(job, target, list(job.token_ids), self._step)
        self._reused.append((job.job_id, len(target.tokens)))
        return True

    def _longest_prefix(self, job: Job) -> tuple[_Slot | None, int]:
        """The slot of the same scope that shares most; never the whole context.

        The last token is always computed again: its logits are not kept.
        """
        best: _Slot | None = None
        longest = MIN_SHARED_TOKENS - 1
        if not job.scope:
            return None, 0
        for slot in self._slots:
            if slot.scope != job.scope:
                continue
            shared = min(common_prefix(slot.tokens, job.token_ids), len(job.token_ids) - 1)
            is_better_kind = best is not None and best.owner is not None and slot.owner is None
            if shared > longest or (shared == longest and is_better_kind):
                best, longest = slot, shared
        return best, longest if best is not None else 0

    def _make_room(self, job: Job, keep: _Slot | None) -> bool:
        """Evict cache, least recently used first, until the reservation fits; `keep` stays."""
        kept = len(keep.tokens) if keep is not None else 0
        cached = (slot for slot in self._slots if slot.owner is None and slot.tokens)
        idle = sorted((slot for slot in cached if slot is not keep), key=lambda slot: slot.used_at)
        evictable = sum(len(slot.tokens) for slot in idle)
        over = self.kv_tokens - kept + job.reserved_tokens - self._limits.kv_tokens
        if over > evictable:
            return False
        for slot in idle:
            if over <= 0:
                break
            over -= len(slot.tokens)
            self._clear(slot)
        return True

    def _free_slot(self) -> _Slot:
        """An empty slot, or the least recently used cached one emptied.

        There is one: slots >= max_sequences and fewer than that are running.
        """
        idle = [slot for slot in self._slots if slot.owner is None]
        slot = min(idle, key=lambda candidate: (bool(candidate.tokens), candidate.used_at))
        if slot.tokens:
            self._clear(slot)
        return slot

    def _clear(self, slot: _Slot) -> None:
        self._memory.append(Remove(slot.index, 0))
        slot.tokens, slot.scope = [], ""


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal items at the beginning."""
    limit = min(len(left), len(right))
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if list(left[low:middle]) == list(right[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
