"""When the watchdog kills and when it tries again, and what it reads from supervisord."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import ProtocolViolation
from nodeapp.watchdog.events import parse_header, parse_process_event
from nodeapp.watchdog.policy import (
    MAX_QUARANTINE_SECONDS,
    QUARANTINE_SECONDS,
    START_SECONDS,
    Kill,
    Probed,
    Start,
    WatchState,
    apply,
)


def feed(state, looks):
    effects = []
    for now, state_name, pid, answered in looks:
        state, made = apply(state, Probed("chain", state_name, pid, answered), now)
        effects += [(now, effect) for effect in made]
    return state, effects


def test_a_process_that_answered_and_falls_silent_is_killed_after_the_misses():
    looks = [(0, "RUNNING", 7, True), *((n, "RUNNING", 7, False) for n in range(1, 4))]
    _, effects = feed(WatchState(3), looks)
    assert effects == [(3, Kill("chain", 3))]


def test_an_answer_forgives_earlier_misses():
    answers = [True, False, False, True, False, False, True]
    looks = [(n, "RUNNING", 7, answered) for n, answered in enumerate(answers)]
    assert feed(WatchState(3), looks)[1] == []


def test_a_slow_start_is_left_alone_and_then_is_not():
    looks = [(n, "RUNNING", 7, False) for n in range(int(START_SECONDS))]
    state, effects = feed(WatchState(3), looks)
    assert effects == []
    late = [(START_SECONDS + n, "RUNNING", 7, False) for n in range(3)]
    assert [effect for _, effect in feed(state, late)[1]] == [Kill("chain", 3)]


def test_a_new_process_id_begins_anew():
    looks = [(0, "RUNNING", 7, True), (1, "RUNNING", 7, False), (2, "RUNNING", 7, False)]
    state, _ = feed(WatchState(3), looks)
    assert feed(state, [(3, "STARTING", 8, False), (4, "RUNNING", 8, False)])[1] == []


def test_silence_while_it_still_counts_as_starting_is_noticed():
    looks = [(0, "STARTING", 7, True), *((n, "RUNNING", 7, False) for n in (1, 2, 3))]
    assert feed(WatchState(3), looks)[1] == [(3, Kill("chain", 3))]


def test_a_given_up_process_is_tried_again_after_pauses_that_double():
    state, starts, now = WatchState(3), [], 0.0
    while len(starts) < 3:
        state, effects = apply(state, Probed("chain", "FATAL", 0, False), now)
        starts += [now for effect in effects if isinstance(effect, Start)]
        now += 1
    assert starts[0] == QUARANTINE_SECONDS
    assert starts[2] - starts[1] > starts[1] - starts[0] >= QUARANTINE_SECONDS
    assert MAX_QUARANTINE_SECONDS >= 10 * QUARANTINE_SECONDS


def test_events_are_read_as_supervisord_writes_them():
    header = parse_header(
        b"ver:3.0 server:fabstir-node serial:21 pool:watchdog poolserial:10 "
        b"eventname:PROCESS_STATE_EXITED len:71\n"
    )
    body = b"processname:chain groupname:chain from_state:RUNNING expected:0 pid:2766"
    event = parse_process_event(header, body)
    assert (event.process, event.state, event.expected) == ("chain", "EXITED", False)


@given(st.binary(max_size=200))
def test_property_garbage_is_a_protocol_violation_and_nothing_else(line):
    try:
        parse_header(line)
    except ProtocolViolation:
        return


@pytest.mark.parametrize("length", [b"-1", b"99999999999", b"x"])
def test_a_body_length_out_of_bounds_is_refused(length):
    with pytest.raises(ProtocolViolation):
        parse_header(b"eventname:X len:" + length)
