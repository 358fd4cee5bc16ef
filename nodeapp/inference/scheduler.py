"""Which tokens go into the next batch: continuous batching over a shared KV cache. Pure.

Rules: decode rows always first, then guesses (drafts) for them, then prefill, in one batch or in
the next (see Limits.is_mixed). Renters take turns (fairness.py). A request is admitted when a
sequence slot is free and its whole reservation (prompt + answer) fits, so a running one never runs
out of KV cells and nothing is ever taken back; one that does not fit keeps its turn, so it cannot
be passed for ever. A request whose prefix another is computing is held until that is done. Finished
sequences stay as prefix cache until their cells are wanted, least recently used first, or until
they cost more than they promise to save: every row that is computed looks at every cell in use.
What they held may then be parked in the host's memory (parking.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodeapp.inference.fairness import PrefillTurns, WaitingJobs
from nodeapp.inference.job import Job, Running, Waiting
from nodeapp.inference.kv import BLOCK_TOKENS, KvCells, Prefix, Slot
from nodeapp.inference.parking import Parked, Parking
from nodeapp.inference.step import (
    MAX_DRAFT_TOKENS,
    Copy,
    Forget,
    MemoryOperation,
    Park,
    Remove,
    Restore,
    Rows,
    Step,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets, in tokens unless named otherwise; `slots` >= `max_sequences`."""

    max_sequences: int
    slots: int
    kv_tokens: int
    prefill_tokens: int
    prefill_tokens_while_decoding: int
    idle_rows: int = 0
    """A cached prefix is dropped when so many rows were computed since its last use; 0: never."""
    parked_tokens: int = 0
    """Tokens of dropped prefixes that the host's memory may hold."""
    is_mixed: bool = True
    """Prefill shares a batch with decode rows; else the two take turns while there are both."""


class Scheduler:
    """The one owner of sequence slots and KV cells; deterministic, no clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._cells = KvCells(limits.slots)
        self._parking = Parking(limits.parked_tokens)
        self._waiting = WaitingJobs()
        self._running: dict[int, Running] = {}
        self._memory: list[MemoryOperation] = []
        self._reused: list[tuple[int, int]] = []
        self._prefill_turns = PrefillTurns()
        self._has_no_room = False
        self._is_prefill_turn = False
        self._step = 0
        self._rows_done = 0

    @property
    def waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens of all jobs that are not computed yet."""
        running = sum(max(0, running.remaining - 1) for running in self._running.values())
        return self._waiting.prefill_tokens + running

    @property
    def parked_tokens(self) -> int:
        """Tokens of prefixes in the host's memory."""
        return self._parking.tokens

    @property
    def kv_tokens(self) -> int:
        """Cells held: reservations of running sequences and the prefix cache."""
        return self._cells.used

    def submit(self, job: Job) -> None:
        """Queue a job. Its reservation must fit the whole cache, and its context is not empty."""
        if not job.token_ids or not len(job.token_ids) < job.reserved_tokens:
            raise ValueError(f"job {job.job_id} reserves {job.reserved_tokens} tokens")
        if job.reserved_tokens > self._limits.kv_tokens:
            raise ValueError(f"job {job.job_id} can never fit {self._limits.kv_tokens} cells")
        prefix = Prefix.of(job.token_ids, job.scope or f"\0job {job.job_id}", job.public)
        self._waiting.add(Waiting(job, prefix))
        self._has_no_room = False

    def pause(self, job_id: int, *, is_paused: bool) -> None:
        """Leave a job out of the batches, or take it in again; its cells stay."""
        if job_id in self._running:
            self._running[job_id].is_paused = is_paused

    def advance(self, job_id: int, token_ids: Sequence[int], draft: Sequence[int] = ()) -> None:
        """Tokens were chosen: the guesses that came true and one more, which is computed next.

        Cells of guesses that did not come true are dropped. `draft` guesses what follows.
        """
        running = self._running[job_id]
        running.context += token_ids
        running.draft = tuple(draft)
        valid = len(running.context) - 1
        if len(running.slot.tokens) > valid:
            self._truncate(running.slot, valid)

    def finish(self, job_id: int) -> None:
        """Forget a job in whatever state; its cells become prefix cache of its scope."""
        self._has_no_room = False
        running = self._running.pop(job_id, None)
        if running is None:
            self._waiting.forget(job_id)
            return
        slot = running.slot
        slot.owner, slot.reserved = None, 0
        slot.used_at, slot.used_at_row = self._step, self._rows_done
        if not running.job.scope:
            self._truncate(slot, running.job.public // BLOCK_TOKENS * BLOCK_TOKENS)

    def lost(self, slot: int) -> int | None:
        """The slot's cells could not be kept or restored: all are gone. Returns whose they were."""
        self._cells.truncate(self._cells.slots[slot], 0)
        return self._cells.slots[slot].owner

    def drop_cache(self) -> bool:
        """Give up the whole prefix cache; False when there was none."""
        idle = self._idle()
        for slot in idle:
            self._truncate(slot, 0)
        return bool(idle)

    def plan(self) -> Step:
        """The next step. Its memory operations must be carried out even without rows."""
        self._step += 1
        self._drop_stale()
        self._admit_all()
        active = [running for running in self._running.values() if not running.is_paused]
        decode = [running for running in active if running.remaining == 1]
        prefill = [running for running in active if running.remaining > 1]
        takes_turns = bool(decode and prefill) and not self._limits.is_mixed
        is_prefill_turn = takes_turns and self._is_prefill_turn
        self._is_prefill_turn = takes_turns and not is_prefill_turn
        rows = self._decode(decode) if not is_prefill_turn else []
        budget = self._limits.prefill_tokens
        if decode:
            drafts = sum(row.drafts for row in rows)
            budget = max(0, self._limits.prefill_tokens_while_decoding - drafts)
        if prefill and (is_prefill_turn or not takes_turns):
            rows += self._prefill(prefill, budget)
        step = Step(tuple(self._memory), tuple(rows), tuple(self._reused))
        self._memory, self._reused = [], []
        return step

    def done(self, step: Step) -> None:
        """The batch was computed: its tokens are in the cache now."""
        for rows in step.rows:
            self._rows_done += len(rows.token_ids)
            running = self._running.get(rows.job_id)
            if running is not None:
                self._cells.append(running.slot, rows.token_ids)

    def _decode(self, decode: Sequence[Running]) -> list[Rows]:
        rows: list[Rows] = []
        room = min(MAX_DRAFT_TOKENS, self._limits.prefill_tokens)
        for running in decode:
            slot = running.slot
            start = len(slot.tokens)
            draft = running.draft[: min(room, slot.reserved - start - 1)]
            room -= len(draft)
            token_ids = (running.context[-1], *draft)
            job_id = running.job.job_id
            rows.append(Rows(job_id, slot.index, start, token_ids, is_last=True, drafts=len(draft)))
        return rows

    def _prefill(self, prefill: list[Running], budget: int) -> list[Rows]:
        shares = self._prefill_turns.share(prefill, budget, self._step)
        return [self._prefill_rows(running, count) for running, count in shares.items()]

    def _prefill_rows(self, running: Running, count: int) -> Rows:
        start = len(running.slot.tokens)
        return Rows(
            running.job.job_id,
            running.slot.index,
            start,
            tuple(running.context[start : start + count]),
            is_last=count == running.remaining,
        )

    def _admit_all(self) -> None:
        while len(self._running) < self._limits.max_sequences and not self._has_no_room:
            chosen = self._waiting.next(self._is_held)
            if chosen is None:
                return
            waiting, rounds = chosen
            if not self._admit(waiting):
                self._has_no_room = True
                return
            self._waiting.take(waiting, rounds)

    def _is_held(self, waiting: Waiting) -> bool:
        """Another one is computing a prefix of this one, longer than what is there already."""
        resident: int | None = None
        for running in self._running.values():
            if running.is_paused or running.remaining <= 1:
                continue
            shared = waiting.prefix.common_blocks(running.prefix)
            if shared <= len(running.slot.blocks):
                continue
            if resident is None:
                _, resident = self._cells.longest(waiting.prefix)
            if shared * BLOCK_TOKENS - resident >= BLOCK_TOKENS:
                return True
        return False

    def _admit(self, waiting: Waiting) -> bool:
        job = waiting.job
        source, shared = self._cells.longest(waiting.prefix)
        parked, kept = self._parking.longest(waiting.prefix)
        if parked is not None and not (
            kept >= shared + BLOCK_TOKENS and len(parked.tokens) <= job.reserved_tokens
        ):
            parked = None
        if parked is not None:
            source, shared = None, 0
        blocks = shared // BLOCK_TOKENS
        needed = self._cells.needed(source, blocks) - blocks * BLOCK_TOKENS
        if needed + job.reserved_tokens > self._limits.kv_tokens:
            return False
        if parked is not None:
            self._parking.take(parked.key)
        slot = self._place(source, shared)
        slot.scope, slot.public = waiting.prefix.scope, job.public
        slot.owner, slot.reserved = job.job_id, job.reserved_tokens
        for idle in sorted(self._idle(), key=lambda idle: idle.used_at):
            if self._cells.used <= self._limits.kv_tokens:
                break
            self._evict(idle)
        if parked is not None:
            self._unpark(parked, slot, kept)
        self._running[job.job_id] = Running(
            job, waiting.prefix, slot, list(job.token_ids), self._step
        )
        self._reused.append((job.job_id, len(slot.tokens)))
        return True

    def _unpark(self, parked: Parked, slot: Slot, end: int) -> None:
        """Of another scope only what is public is shared; the rest is still wanted there."""
        is_kept = parked.scope != slot.scope
        self._memory.append(Restore(parked.key, slot.index, end, is_kept))
        self._cells.append(slot, parked.tokens[:end])
        if is_kept:
            self._memory += [Forget(one) for one in self._parking.put_back(parked)]

    def _place(self, source: Slot | None, shared: int) -> Slot:
        """A slot with the shared tokens in it.

        The source itself when nobody runs in it and little of it would be lost, or there is no
        other; else another one, the empty ones first, then the least recently used.
        """
        others = [slot for slot in self._cells.slots if slot.owner is None and slot is not source]
        if source is not None and source.owner is None:
            has_empty = any(not slot.tokens for slot in others)
            if not has_empty or 2 * shared >= len(source.tokens):
                if shared < len(source.tokens):
                    self._truncate(source, shared)
                return source
        target = min(others, key=lambda slot: (bool(slot.tokens), slot.used_at))
        if target.tokens:
            self._evict(target)
        if source is not None:
            self._memory.append(Copy(source.index, target.index, shared))
            self._cells.share(source, target, shared)
        return target

    def _drop_stale(self) -> None:
        limit = self._limits.idle_rows
        for slot in self._idle() if limit else ():
            if self._rows_done - slot.used_at_row > limit:
                self._evict(slot)
                self._has_no_room = False

    def _idle(self) -> list[Slot]:
        return [slot for slot in self._cells.slots if slot.owner is None and slot.tokens]

    def _evict(self, slot: Slot) -> None:
        """Give up the slot's cells, but not what they hold when it may be of use again."""
        if self._parking.is_worth(slot):
            key, dropped = self._parking.add(slot)
            self._memory += [Forget(one) for one in dropped]
            self._memory.append(Park(slot.index, key))
        self._truncate(slot, 0)

    def _truncate(self, slot: Slot, length: int) -> None:
        self._memory.append(Remove(slot.index, length))
        self._cells.truncate(slot, length)
