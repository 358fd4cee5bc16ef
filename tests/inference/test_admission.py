"""The estimate of a wait: nothing is refused on a guess, only on what was measured."""

from __future__ import annotations

from nodeapp.inference.admission import Load, SpeedMeter


def test_nothing_measured_is_no_wait():
    assert Load(waiting=50, running=4).wait_seconds(10_000, 4) == 0.0


def test_prefill_ahead_and_the_own_prompt_are_waited_for():
    load = Load(prefill_tokens=900, seconds_per_prefill_token=0.01)
    assert load.wait_seconds(100, 4) == 10.0


def test_who_finds_no_sequence_waits_for_answers_to_end():
    meter = SpeedMeter()
    meter.step(prefill_tokens=0, decode_rows=4, seconds=0.1)
    full = meter.load(waiting=0, running=4, prefill_tokens=0)
    queued = meter.load(waiting=7, running=4, prefill_tokens=0)
    free = meter.load(waiting=0, running=3, prefill_tokens=0)
    assert free.wait_seconds(10, 4) == 0.0
    assert full.wait_seconds(10, 4) == 0.1 * 128 / 4
    assert queued.wait_seconds(10, 4) == 8 * full.wait_seconds(10, 4)


def test_a_step_counts_for_what_most_of_it_was():
    meter = SpeedMeter()
    meter.step(prefill_tokens=64, decode_rows=2, seconds=0.64)
    meter.step(prefill_tokens=1, decode_rows=8, seconds=0.2)
    meter.step(prefill_tokens=0, decode_rows=0, seconds=9.0)
    load = meter.load(waiting=0, running=0, prefill_tokens=0)
    assert (load.seconds_per_prefill_token, load.seconds_per_decode_step) == (0.01, 0.2)


def test_short_answers_shorten_the_wait():
    meter = SpeedMeter()
    for _ in range(60):
        meter.answer(10)
    assert meter.load(waiting=0, running=0, prefill_tokens=0).answer_tokens < 12
