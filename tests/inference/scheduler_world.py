"""A model of the KV cache in which a scheduler's steps are carried out and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from nodeapp.inference.job import Job
from nodeapp.inference.scheduler import Limits, Scheduler
from nodeapp.inference.step import Copy, Forget, Park, Remove, Restore

SMALL = Limits(
    max_sequences=2, slots=4, kv_tokens=100, prefill_tokens=10, prefill_tokens_while_decoding=4
)
WIDE = Limits(
    max_sequences=8, slots=16, kv_tokens=4000, prefill_tokens=128, prefill_tokens_while_decoding=64
)
SYSTEM = range(1000, 1200)


@dataclass
class World:
    """Carries out steps as llama.cpp would and checks every rule while doing so."""

    limits: Limits
    scheduler: Scheduler = field(init=False)
    cells: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Per slot its (token, cell) pairs; a copied sequence has the same cells."""
    numbers: count = field(default_factory=count)
    wanted: dict[int, int] = field(default_factory=dict)
    contexts: dict[int, list[int]] = field(default_factory=dict)
    parked: dict[int, list[int]] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)
    finished: list[int] = field(default_factory=list)
    reused: dict[int, int] = field(default_factory=dict)
    accepted: int = 0
    guess: Callable[[int], tuple[int, ...]] = lambda _number: ()

    def __post_init__(self):
        self.scheduler = Scheduler(self.limits)

    def submit(self, number, tokens, answer, scope="", **more):
        job = Job(number, tuple(tokens), len(tokens) + answer, scope, **more)
        self.scheduler.submit(job)
        self.wanted[number] = answer
        self.contexts[number] = list(tokens)

    def step(self):
        plan = self.scheduler.plan()
        self.apply_memory(plan)
        self.reused |= dict(plan.reused)
        assert len({rows.slot for rows in plan.rows}) == len(plan.rows)
        assert len(plan.rows) <= self.limits.max_sequences
        decode = [
            rows for rows in plan.rows if len(rows.token_ids) == 1 + rows.drafts and rows.is_last
        ]
        prefill = sum(len(rows.token_ids) for rows in plan.rows if rows not in decode)
        assert prefill <= self.limits.prefill_tokens
        assert not decode or plan.rows[: len(decode)] == tuple(decode)
        assert self.limits.is_mixed or not (decode and prefill)
        for rows in plan.rows:
            held = self.cells.setdefault(rows.slot, [])
            context = self.contexts[rows.job_id]
            assert rows.job_id not in self.paused
            assert [token for token, _ in held] == context[: rows.start]
            held += [(token, next(self.numbers)) for token in rows.token_ids]
            sure = len(held) - rows.drafts
            assert [token for token, _ in held[:sure]] == context[:sure]
            assert rows.is_last == (sure == len(context))
        used = {cell for held in self.cells.values() for _, cell in held}
        assert len(used) <= self.scheduler.kv_tokens <= self.limits.kv_tokens
        self.scheduler.done(plan)
        for rows in plan.rows:
            if rows.is_last:
                self.answer(rows)
        return plan

    def apply_memory(self, plan):
        for operation in plan.memory:
            match operation:
                case Remove(slot, start):
                    del self.cells.setdefault(slot, [])[start:]
                case Copy(source, target, end):
                    assert not self.cells.get(target)
                    assert len(self.cells[source]) >= end
                    self.cells[target] = self.cells[source][:end]
                case Park(slot, key):
                    assert key not in self.parked
                    self.parked[key] = [token for token, _ in self.cells[slot]]
                case Restore(key, slot, end, is_kept):
                    assert not self.cells.get(slot)
                    tokens = self.parked[key] if is_kept else self.parked.pop(key)
                    others = {cell for held in self.cells.values() for _, cell in held}
                    assert len(others) + len(tokens) <= self.limits.kv_tokens
                    self.cells[slot] = [(token, next(self.numbers)) for token in tokens[:end]]
                case Forget(key):
                    del self.parked[key]
                case _:
                    raise AssertionError(operation)
        held = sum(map(len, self.parked.values()))
        assert held == self.scheduler.parked_tokens <= self.limits.parked_tokens

    def answer(self, rows):
        """The model says 7, 8, 9, 7…; guesses that agree with it are taken."""
        number = rows.job_id
        chosen = []
        for guess in (*rows.token_ids[len(rows.token_ids) - rows.drafts :], None):
            token = 7 + len(self.contexts[number]) % 3
            chosen.append(token)
            self.contexts[number].append(token)
            self.wanted[number] -= 1
            if self.wanted[number] == 0:
                self.scheduler.finish(number)
                self.finished.append(number)
                return
            if guess != token:
                break
        self.accepted += len(chosen) - 1
        self.scheduler.advance(number, chosen, self.guess(number))

    def run(self, *, steps=2000):
        for _ in range(steps):
            if len(self.finished) == len(self.wanted):
                return
            self.step()
        raise AssertionError(f"finished {self.finished} of {sorted(self.wanted)}")
