"""Prefixes in the host's memory: whom they come back for, and what is forgotten first."""

from __future__ import annotations

from nodeapp.inference.scheduler import Limits
from tests.inference.scheduler_world import SYSTEM, World


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
