"""Prefixes in the KV cache: who shares which cells, and when they are given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.inference.kv import common_prefix
from nodeapp.inference.scheduler import Limits
from nodeapp.inference.step import Copy
from tests.inference.scheduler_world import SMALL, SYSTEM, WIDE, World


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


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_the_longest(left, right):
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]
