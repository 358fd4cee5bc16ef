"""The scheduler against a model of the KV cache: budgets kept, positions contiguous, no deadlock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.inference.kv import common_prefix
from nodeapp.inference.scheduler import (
    MAX_DRAFT_TOKENS,
    Copy,
    Forget,
    Job,
    Limits,
    Park,
    Remove,
    Restore,
    Scheduler,
)

SMALL = Limits(
    max_sequences=2, slots=4, kv_tokens=100, prefill_tokens=10, prefill_tokens_while_decoding=4
)


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


def test_a_prompt_is_prefilled_in_chunks_then_decoded():
    world = World(SMALL)
    world.submit(1, range(25), 3)
    sizes = [[len(rows.token_ids) for rows in world.step().rows] for _ in range(5)]
    assert sizes == [[10], [10], [5], [1], [1]]
    assert world.finished == [1]


def test_decode_rows_come_first_and_prefill_gets_the_smaller_share():
    world = World(SMALL)
    world.submit(1, range(5), 10)
    world.step()
    world.submit(2, range(100, 120), 3)
    assert [(rows.job_id, len(rows.token_ids)) for rows in world.step().rows] == [(1, 1), (2, 4)]


def test_unmixed_prefill_takes_turns_with_decode_rows():
    world = World(Limits(2, 4, 100, 10, 4, is_mixed=False))
    world.submit(1, range(5), 5)
    world.step()
    world.submit(2, range(100, 108), 2)
    steps = [[(r.job_id, len(r.token_ids)) for r in world.step().rows] for _ in range(6)]
    assert steps == [[(1, 1)], [(2, 4)], [(1, 1)], [(2, 4)], [(1, 1), (2, 1)], [(1, 1)]]


def test_shortest_prefill_goes_first_but_the_long_one_is_not_starved():
    limits = Limits(8, 8, 10_000, 10, 4)
    world = World(limits)
    world.submit(1, range(100), 1)
    world.step()
    for number in range(2, 60):
        world.submit(number, range(1000 * number, 1000 * number + 8), 1)
    world.run()
    assert world.finished[0] != 1
    assert world.finished.index(1) < 40


def test_a_third_request_waits_for_a_sequence():
    world = World(SMALL)
    for number in (1, 2, 3):
        world.submit(number, range(number * 10, number * 10 + 5), 2)
    world.step()
    assert (world.scheduler.running, world.scheduler.waiting) == (2, 1)
    world.run()


def test_a_reservation_that_does_not_fit_waits_and_keeps_its_place():
    world = World(SMALL)
    world.submit(1, range(50), 20)
    world.submit(2, range(60, 110), 20)
    world.submit(3, range(5), 1)
    world.step()
    assert (world.scheduler.running, world.scheduler.waiting) == (1, 2)
    world.run()
    assert world.finished[0] == 1


def test_the_same_scope_reuses_a_finished_prefix_in_place():
    world = World(SMALL)
    world.submit(1, range(40), 2, scope="renter")
    world.run()
    world.submit(2, [*range(40), 99], 2, scope="renter")
    plan = world.step()
    assert world.reused[2] == 40
    assert [len(rows.token_ids) for rows in plan.rows] == [1]


def test_the_last_token_is_always_computed_again():
    world = World(SMALL)
    world.submit(1, range(40), 2, scope="renter")
    world.run()
    world.submit(2, range(40), 2, scope="renter")
    world.step()
    assert world.reused[2] == 39


def test_a_running_prefix_is_shared_by_copy():
    world = World(SMALL)
    world.submit(1, range(30), 10, scope="renter")
    for _ in range(4):
        world.step()
    world.submit(2, [*range(30), 98, 99], 3, scope="renter")
    assert any(isinstance(operation, Copy) for operation in world.step().memory)
    assert world.reused[2] == 30
    world.run()


@pytest.mark.parametrize("scope", ["other", ""])
def test_another_scope_never_shares(scope):
    world = World(SMALL)
    world.submit(1, range(40), 2, scope="renter")
    world.run()
    world.submit(2, [*range(40), 99], 2, scope=scope)
    world.step()
    assert world.reused[2] == 0


def test_no_scope_leaves_nothing_behind():
    world = World(SMALL)
    world.submit(1, range(40), 2)
    world.run()
    world.step()
    assert world.scheduler.kv_tokens == 0
    assert not any(world.cells.values())


def test_cache_is_evicted_oldest_first_when_cells_are_wanted():
    world = World(SMALL)
    world.submit(1, range(30), 1, scope="a")
    world.run()
    world.submit(2, range(100, 130), 1, scope="b")
    world.run()
    world.submit(3, range(200, 240), 10, scope="c")
    world.run()
    world.submit(4, range(100, 130), 1, scope="b")
    world.submit(5, range(30), 1, scope="a")
    world.run()
    assert (world.reused[4], world.reused[5]) == (29, 0)


def test_finishing_a_waiting_request_forgets_it():
    world = World(SMALL)
    for number in (1, 2, 3):
        world.submit(number, range(10), 5)
    world.step()
    world.scheduler.finish(3)
    assert world.scheduler.waiting == 0


def test_a_paused_request_keeps_its_cells_and_is_left_out():
    world = World(SMALL)
    world.submit(1, range(5), 5)
    world.step()
    world.scheduler.pause(1, is_paused=True)
    world.paused.add(1)
    assert world.step().rows == ()
    assert world.scheduler.kv_tokens == 10
    world.paused.clear()
    world.scheduler.pause(1, is_paused=False)
    world.run()


def test_lost_cells_are_computed_again():
    world = World(SMALL)
    world.submit(1, range(12), 3)
    world.step()
    world.scheduler.lost(0)
    world.cells[0] = []
    world.run()


def test_a_job_that_can_never_fit_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="never fit"):
        World(SMALL).submit(1, range(90), 11)


jobs = st.lists(
    st.tuples(
        st.integers(1, 200),
        st.integers(1, 30),
        st.sampled_from(["", "a", "b"]),
        st.integers(0, 3),
        st.integers(1, 5),
        st.sampled_from([0, 70, 130]),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=120, deadline=None)
@given(
    jobs=jobs,
    sequences=st.integers(1, 4),
    extra_slots=st.integers(0, 3),
    kv=st.integers(230, 700),
    guesses=st.lists(st.lists(st.integers(7, 9), max_size=8), max_size=5),
    prefill=st.integers(1, 16),
    noise=st.lists(st.tuples(st.integers(0, 13), st.sampled_from("cpr")), max_size=20),
    is_mixed=st.booleans(),
    idle_rows=st.sampled_from([0, 4, 60]),
    parked_tokens=st.sampled_from([0, 90, 500]),
)
def test_every_job_ends_and_no_budget_is_ever_exceeded(
    jobs, sequences, extra_slots, kv, prefill, guesses, noise, is_mixed, idle_rows, parked_tokens
):
    slots, share = sequences + extra_slots, max(1, prefill // 2)
    limits = Limits(sequences, slots, kv, prefill, share, idle_rows, parked_tokens, is_mixed)
    world = World(limits)
    if guesses:
        world.guess = lambda number: tuple(guesses[number % len(guesses)])
    actions = list(noise)
    for number, (length, answer, scope, base, weight, public) in enumerate(jobs):
        tokens = range(base, base + length)
        declared = min(public, length) if base == 0 else 0
        renter = f"{scope}{weight}"
        world.submit(number, tokens, answer, scope, public=declared, renter=renter, weight=weight)
        world.step()
        if actions:
            target, action = actions.pop()
            open_jobs = target in world.wanted and target not in world.finished
            if action == "c" and open_jobs:
                world.scheduler.finish(target)
                world.finished.append(target)
                world.paused.discard(target)
            elif action == "p" and open_jobs:
                world.scheduler.pause(target, is_paused=True)
                if target in world.scheduler._running:
                    world.paused.add(target)
            elif action == "r":
                world.scheduler.pause(target, is_paused=False)
                world.paused.discard(target)
    for number in list(world.paused):
        world.scheduler.pause(number, is_paused=False)
    world.paused.clear()
    world.run()
    assert sorted(world.finished) == sorted(world.wanted)
    assert world.scheduler.running == world.scheduler.waiting == 0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_the_longest(left, right):
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


WIDE = Limits(
    max_sequences=8, slots=16, kv_tokens=4000, prefill_tokens=128, prefill_tokens_while_decoding=64
)
SYSTEM = range(1000, 1200)


def prefilled(world):
    """Runs to the end; returns how many prompt tokens were computed by whom."""
    computed = {}
    while len(world.finished) < len(world.wanted):
        for rows in world.step().rows:
            computed[rows.job_id] = computed.get(rows.job_id, 0) + len(rows.token_ids)
    return computed


def test_requests_that_come_together_compute_their_common_prefix_once():
    world = World(WIDE)
    for number in range(6):
        world.submit(number, [*SYSTEM, number, number], 1, scope="renter")
    computed = prefilled(world)
    assert computed[0] == 202
    assert all(computed[number] == 2 for number in range(1, 6))


def test_a_request_is_held_only_for_a_prefix_it_may_share():
    world = World(WIDE)
    world.submit(1, SYSTEM, 1, scope="a")
    world.submit(2, SYSTEM, 1, scope="b")
    world.step()
    assert (world.scheduler.running, world.scheduler.waiting) == (2, 0)


def test_a_held_request_goes_on_when_the_one_it_waits_for_is_cancelled_or_paused():
    for event in ("finish", "pause"):
        world = World(WIDE)
        world.submit(1, range(600), 1, scope="a")
        world.step()
        world.submit(2, range(600), 1, scope="a")
        world.step()
        world.submit(3, range(600), 1, scope="a")
        if event == "finish":
            world.scheduler.finish(1)
            world.finished.append(1)
        else:
            world.scheduler.pause(1, is_paused=True)
            world.paused.add(1)
            world.step()
            assert world.scheduler.running >= 2
            world.scheduler.pause(1, is_paused=False)
            world.paused.clear()
        world.run()


def test_shared_blocks_are_counted_once():
    world = World(Limits(8, 16, 600, 128, 64))
    world.submit(0, [*SYSTEM, 1], 1, scope="renter")
    world.run()
    for number in range(1, 9):
        world.submit(number, [*SYSTEM, number], 20, scope="renter")
    world.step()
    # Nine copies would be 1977 cells; three blocks are shared, 29 are each one's own.
    assert world.scheduler.running == 8
    assert world.scheduler.kv_tokens <= 192 + 9 * 29
    world.run()


def test_a_public_prefix_is_shared_between_renters_and_nothing_behind_it():
    world = World(WIDE)
    world.submit(1, [*SYSTEM, *range(100)], 1, scope="a", public=200)
    world.run()
    world.submit(2, [*SYSTEM, *range(100)], 1, scope="b", public=200)
    world.step()
    assert world.reused[2] == 200
    world.submit(3, [*SYSTEM, *range(100)], 1, scope="", public=200)
    world.run()
    assert world.reused[3] == 200
    world.submit(4, [*SYSTEM, *range(100)], 1, scope="c")
    world.run()
    assert world.reused[4] == 0


def test_a_short_question_does_not_cost_a_long_conversation_its_cells():
    world = World(WIDE)
    world.submit(1, range(600), 1, scope="a")
    world.run()
    world.submit(2, [*range(70), 9, 9], 1, scope="a")
    world.run()
    world.submit(3, [*range(600), 5], 1, scope="a")
    world.run()
    assert (world.reused[2], world.reused[3]) == (70, 600)


def test_renters_take_turns_however_many_requests_one_of_them_queues():
    world = World(Limits(1, 2, 4000, 128, 64))
    for number in range(20):
        world.submit(number, range(number * 100, number * 100 + 50), 2, renter="many")
    world.submit(100, range(5000, 5050), 2, renter="one")
    world.run()
    assert world.finished.index(100) <= 11


def test_a_renter_of_weight_three_gets_three_turns_for_one():
    world = World(Limits(1, 2, 4000, 600, 600))
    for number in range(40):
        world.submit(number, range(number * 600, number * 600 + 510), 2, renter="a", weight=3)
        world.submit(100 + number, range(50_000, 50_510), 2, renter="b")
    world.run()
    first = world.finished[:24]
    assert sum(number < 100 for number in first) == pytest.approx(18, abs=2)


def test_a_long_prefill_of_one_renter_does_not_hold_up_the_short_one_of_another():
    world = World(WIDE)
    world.submit(1, range(3000), 1, renter="a")
    for _ in range(2):
        world.step()
    world.submit(2, range(5000, 5100), 1, renter="b")
    for _ in range(6):
        world.step()
    assert world.finished == [2]


def test_right_guesses_save_steps_and_wrong_ones_leave_no_cells():
    def right(number):
        length = len(world.contexts[number])
        return tuple(7 + (length + ahead) % 3 for ahead in range(4))

    plain, steps = World(WIDE), 0
    plain.submit(1, range(100), 60)
    plain.run()
    for guess in (right, lambda _number: (1, 2, 3)):
        world = World(WIDE, guess=guess)
        world.submit(1, range(100), 60)
        steps = 0
        while not world.finished:
            world.step()
            steps += 1
        assert world.contexts == plain.contexts
        assert (steps < 20) == (guess is right)
        world.step()
        assert not any(world.cells.values())


def test_guesses_leave_a_sequence_its_reservation_and_the_others_their_rows():
    world = World(Limits(4, 8, 4000, 64, 16), guess=lambda _number: (1,) * 15)
    for number in range(4):
        world.submit(number, range(number * 50, number * 50 + 20), 12)
    rows = []
    while len(world.finished) < 4:
        rows += [sum(row.drafts for row in world.step().rows)]
    assert max(rows) == MAX_DRAFT_TOKENS


def test_a_cached_prefix_is_dropped_when_it_slowed_others_for_long():
    world = World(Limits(2, 8, 4000, 128, 64, idle_rows=300))
    world.submit(1, SYSTEM, 1, scope="a")
    world.run()
    world.submit(2, range(250), 1, scope="b")
    world.run()
    world.submit(3, [*SYSTEM, 1], 1, scope="a")
    world.run()
    world.submit(4, range(5000, 5400), 1, scope="b")
    world.run()
    world.submit(5, [*SYSTEM, 1], 1, scope="a")
    world.run()
    assert (world.reused[3], world.reused[5]) == (200, 0)


def after(world, number, tokens, scope, **more):
    """How many tokens a further request found there."""
    world.submit(number, tokens, 1, scope=scope, **more)
    world.run()
    return world.reused[number]


def parking_world(**changes):
    return World(Limits(2, 8, 4000, 128, 64, **({"idle_rows": 50, "parked_tokens": 600} | changes)))


def test_a_parked_prefix_comes_back_for_its_own_scope_only():
    world = parking_world()
    after(world, 1, SYSTEM, "a")
    assert after(world, 2, range(5000, 5300), "b") == 0
    assert list(world.parked.values()) == [list(SYSTEM)]
    assert after(world, 4, [*SYSTEM, 1, 2], "b") == 0
    assert after(world, 5, [*SYSTEM, 1, 2], "a") == len(SYSTEM)
    # It is in the cache again, so it is shared from there.
    assert after(world, 6, [*SYSTEM, 1, 3], "a") == len(SYSTEM) + 1


def test_a_conversation_that_went_on_replaces_its_own_beginning():
    world = parking_world()
    after(world, 1, SYSTEM, "a")
    after(world, 2, range(5000, 5200), "b")
    longer = [*SYSTEM, *range(900, 1000)]
    assert after(world, 3, longer, "a") == len(SYSTEM)
    after(world, 4, range(6000, 6200), "b")
    after(world, 5, [1], "b")
    assert list(world.parked.values()).count(longer) == 1
    assert list(SYSTEM) not in world.parked.values()


def test_what_was_parked_longest_ago_is_forgotten_first():
    world = parking_world(parked_tokens=450)
    for number, scope in enumerate("abc"):
        after(world, number, [*SYSTEM, number], scope)
        after(world, 10 + number, range(60), "")
    after(world, 20, range(60), "")
    assert len(world.parked) == 2
    assert after(world, 30, [*SYSTEM, 0, 1], "a") == 0
    assert after(world, 31, [*SYSTEM, 2, 1], "c") == len(SYSTEM) + 1


def test_a_prefix_given_up_for_want_of_room_is_parked_too():
    world = World(Limits(1, 4, 400, 128, 64, parked_tokens=400))
    after(world, 1, SYSTEM, "a")
    after(world, 2, range(5000, 5300), "b")
    assert after(world, 3, [*SYSTEM, 1], "a") == len(SYSTEM)


def test_a_public_prefix_comes_back_for_everybody():
    world = parking_world()
    after(world, 1, [*SYSTEM, 1], "a", public=192)
    after(world, 2, range(5000, 5300), "b")
    after(world, 3, [1], "b")
    assert after(world, 4, [*SYSTEM, 1], "c", public=192) == 192


def test_whoever_takes_a_public_prefix_leaves_the_others_their_own():
    world = parking_world(parked_tokens=1800)
    private = [*SYSTEM, *range(900, 1000)]
    after(world, 1, private, "a", public=192)
    after(world, 2, range(5000, 5300), "b")
    after(world, 3, [1], "b")
    assert after(world, 4, [*SYSTEM[:192], *range(200)], "c", public=192) == 192
    after(world, 5, range(6000, 6300), "b")
    after(world, 6, [1], "b")
    assert after(world, 7, [*private, 5], "a", public=192) == len(private)
