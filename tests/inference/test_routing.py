"""Which engine a request goes to, by open requests, slots and where its prefix lies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.routing import HOME_MARGIN, Load, preference

LOADS = st.lists(
    st.builds(Load, st.integers(0, 20), st.integers(0, 8), st.integers(0, 50)), min_size=1
)


def test_the_least_loaded_of_its_slots_comes_first() -> None:
    assert preference([Load(2, 4), Load(3, 8), Load(0, 1)]) == (2, 1, 0)


def test_equally_loaded_ones_take_turns() -> None:
    assert preference([Load(0, 4, given=3), Load(0, 4, given=2)]) == (1, 0)


def test_the_home_is_kept_while_it_is_not_much_busier() -> None:
    assert preference([Load(2, 4), Load(0, 4)], 0) == (0, 1)
    assert preference([Load(3, 4), Load(0, 4)], 0) == (1, 0)


def test_a_full_home_is_left_for_a_free_slot_but_not_for_another_queue() -> None:
    assert preference([Load(4, 4), Load(3, 4)], 0) == (1, 0)
    assert preference([Load(5, 4), Load(4, 4)], 0) == (0, 1)


def test_who_takes_nothing_is_not_asked_even_when_it_is_home() -> None:
    assert preference([Load(0, 0), Load(9, 2)], 0) == (1,)


def test_when_nobody_takes_anything_all_are_asked_why() -> None:
    assert preference([Load(0, 0), Load(0, 0)], 1) == (0, 1)


@given(LOADS, st.integers(0, 30))
def test_every_usable_engine_is_asked_once_and_the_first_choice_is_bearable(
    loads: list[Load], home: int
) -> None:
    order = preference(loads, home)
    usable = [place for place, load in enumerate(loads) if load.slots]
    assert sorted(order) == (usable or list(range(len(loads))))
    if usable:
        least = min(loads[place].share for place in usable)
        first = loads[order[0]]
        assert first.share == least or (order[0] == home and first.share <= least + HOME_MARGIN)
