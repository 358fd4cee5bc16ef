"""The scheduler against a model of the KV cache: budgets kept, positions contiguous, no deadlock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.inference.scheduler import Limits
from nodeapp.inference.step import MAX_DRAFT_TOKENS
from tests.inference.scheduler_world import SMALL, SYSTEM, WIDE, World


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
