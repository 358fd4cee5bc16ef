"""Renters take turns for sequences and for prefill, by their weight."""

from __future__ import annotations

import pytest

from nodeapp.inference.scheduler import Limits
from tests.inference.scheduler_world import WIDE, World


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
