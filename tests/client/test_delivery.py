"""How many tokens may leave, and when an answer is over."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core import delivery
from nodeapp.core.delivery import Delivery


def test_no_more_leaves_than_the_window_holds():
    state = delivery.made(delivery.begin(0, 0, 4), 10)
    assert state.sendable == 4
    state = delivery.sent(state, 4)
    assert (state.sendable, state.is_waiting_for_renter) == (0, True)
    state = delivery.acknowledged(state, 3)
    assert (state.sendable, state.is_waiting_for_renter) == (3, False)


def test_sending_over_the_window_is_a_bug():
    with pytest.raises(ValueError, match="5 tokens sent, 4 allowed"):
        delivery.sent(delivery.made(delivery.begin(0, 0, 4), 10), 5)


def test_a_slow_engine_is_not_the_renters_fault():
    state = delivery.sent(delivery.made(delivery.begin(0, 0, 4), 2), 2)
    assert not state.is_waiting_for_renter
    assert delivery.finished(state, "stop").is_waiting_for_renter


def test_an_old_receipt_moves_nothing_back():
    state = delivery.sent(delivery.made(delivery.begin(0, 0, 4), 3), 3)
    assert delivery.acknowledged(delivery.acknowledged(state, 3), 1).acknowledged == 3


def test_an_answer_taken_up_again_begins_after_what_was_delivered():
    state = delivery.begin(100, 130, 8)
    assert (state.sent, state.acknowledged, state.completion_tokens) == (130, 130, 30)


def test_the_first_reason_stands():
    state = delivery.finished(delivery.finished(delivery.begin(0, 0, 4), "length"), "stop")
    assert state.finish_reason == "length"


def test_an_answer_is_over_when_the_last_token_was_acknowledged():
    state = delivery.finished(delivery.made(delivery.begin(0, 0, 4), 3), "stop")
    assert not state.is_over
    state = delivery.sent(state, 3)
    assert not state.is_over
    assert delivery.acknowledged(state, 3).is_over


def test_cancelling_drops_what_was_not_sent():
    state = delivery.sent(delivery.made(delivery.begin(0, 0, 4), 10), 4)
    for reason in ("", "stop"):
        ended = delivery.cancelled(delivery.finished(state, reason))
        assert (ended.finish_reason, ended.completion_tokens) == ("cancelled", 4)
        assert delivery.acknowledged(ended, 4).is_over


def test_cancelling_an_answer_that_was_sent_whole_leaves_its_reason():
    state = delivery.sent(delivery.made(delivery.begin(0, 0, 4), 3), 3)
    assert delivery.cancelled(delivery.finished(state, "stop")).finish_reason == "stop"


@settings(max_examples=100, deadline=None)
@given(
    window=st.integers(1, 20),
    steps=st.lists(st.tuples(st.sampled_from(["made", "send", "ack"]), st.integers(0, 30))),
)
def test_property_the_counters_stay_in_order_and_the_window_holds(window, steps):
    state = delivery.begin(5, 9, window)
    for kind, count in steps:
        match kind:
            case "made":
                state = delivery.made(state, count)
            case "send":
                state = delivery.sent(state, min(count, state.sendable))
            case _:
                state = delivery.acknowledged(state, min(state.sent, state.acknowledged + count))
        assert isinstance(state, Delivery)
        assert 5 <= state.acknowledged <= state.sent <= state.made
        assert state.sent - state.acknowledged <= window
