"""Prompt lookup: what is guessed, and when it pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.inference.speculation import DRAFT_LENGTHS, Guesser, SpeculationCost


def test_what_followed_the_last_time_is_guessed():
    guesser = Guesser([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    assert guesser.guess(3) == (4, 5, 6)
    assert guesser.guess(100) == (4, 5, 6, 9, 1, 2, 3)
    guesser.extend([7, 1, 2, 3])
    assert guesser.guess(2) == (7, 1)


def test_words_never_said_before_give_no_guess():
    assert Guesser([1, 2, 3, 4]).guess(5) == ()
    assert Guesser([1, 2]).guess(5) == ()
    assert Guesser([]).guess(5) == ()


def test_the_rate_follows_what_came_up_to_the_first_wrong_guess():
    guesser = Guesser([])
    before = guesser.rate
    guesser.learn((1, 2, 3), (1, 2, 3))
    assert guesser.rate > before
    for _ in range(60):
        guesser.learn((1, 2, 3), (9, 2, 3))
    assert guesser.rate < 0.05
    for _ in range(200):
        guesser.learn((1,), (1,))
    assert guesser.rate < 1


def test_guessing_pays_where_a_row_is_cheap_and_guesses_come_true():
    small_machine, gpu = SpeculationCost.of_row(0.35), SpeculationCost.of_row(0.02)
    assert small_machine.best_length(0.95, 1, 15) == 7
    assert small_machine.best_length(0.4, 1, 15) == 0
    assert small_machine.best_length(0.8, 8, 15) == 0
    assert gpu.best_length(0.95, 8, 15) == 15
    assert gpu.best_length(0.5, 8, 15) in DRAFT_LENGTHS
    assert SpeculationCost.of_row(1.0).best_length(0.98, 1, 15) == 0
    assert gpu.best_length(0.95, 1, 0) == 0
    assert gpu.best_length(0.95, 1, 2) == 1


def test_the_time_of_a_batch_is_read_off_the_measured_curve():
    cost = SpeculationCost(((1, 1.0), (2, 1.9), (4, 3.0), (8, 3.4)))
    assert [cost.of(rows) for rows in (1, 2, 3, 4, 6, 8)] == [1.0, 1.9, 2.45, 3.0, 3.2, 3.4]
    assert cost.of(16) == pytest.approx(4.2)
    # Two rows cost nearly two steps, eight hardly more than four: few guesses do not pay.
    assert cost.best_length(0.9, 1, 3) == 3
    assert cost.best_length(0.6, 1, 3) == 0
    assert cost.best_length(0.9, 1, 15) == 15


@given(
    row=st.floats(0, 5),
    rate=st.floats(0, 0.98),
    sequences=st.integers(1, 64),
    room=st.integers(0, 20),
)
def test_a_draft_always_fits_the_room(row, rate, sequences, room):
    length = SpeculationCost.of_row(row).best_length(rate, sequences, room)
    assert length == 0 or length in DRAFT_LENGTHS
    assert length <= room


@pytest.mark.parametrize("count", [3, 50, 500])
@given(st.data())
def test_a_guess_is_what_stood_behind_the_same_three_tokens(count, data):
    tokens = data.draw(st.lists(st.integers(0, 3), min_size=count // 10, max_size=count))
    guesser = Guesser(tokens)
    guess = guesser.guess(5)
    if guess:
        wanted = [*tokens[-3:], *guess]
        assert any(tokens[at : at + len(wanted)] == wanted for at in range(len(tokens)))
