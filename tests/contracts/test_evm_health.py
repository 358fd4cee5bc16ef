"""Costs, rests and request budgets of an endpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.evm.health import (
    FIRST_REST_SECONDS,
    LONGEST_REST_SECONDS,
    PLACE_COST_SECONDS,
    Health,
    LogSpan,
    TokenBucket,
)


def test_rests_double_and_end_with_an_answer() -> None:
    health, rests, now = Health(), [], 100.0
    for _ in range(9):
        health = health.failed(now, jitter=1.0)
        rests.append(health.rests_until - now)
        now = health.rests_until
    assert rests[:3] == [FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS, 4 * FIRST_REST_SECONDS]
    assert rests[-1] == LONGEST_REST_SECONDS
    assert not health.succeeded(0.1).is_resting(100.0)


def test_requests_that_fail_together_count_once() -> None:
    once = Health().failed(100.0, jitter=1.0)
    together = once.failed(100.1, jitter=0.0).failed(100.2, jitter=0.5)
    assert together.failures == once.failures == 1
    assert together.rests_until >= once.rests_until


@given(st.floats(0, 1), st.floats(0, 1e6), st.integers(0, 40))
def test_a_rest_is_never_shorter_than_half_nor_longer_than_the_longest(jitter, asked, failures):
    health = Health(failures=failures).failed(0.0, jitter=jitter, retry_after_seconds=asked)
    assert FIRST_REST_SECONDS / 2 <= health.rests_until <= LONGEST_REST_SECONDS
    assert health.rests_until >= min(asked, LONGEST_REST_SECONDS)


def test_an_earlier_place_counts_until_it_is_slow_or_fails() -> None:
    first, second = Health(latency_seconds=0.1), Health(latency_seconds=0.1)
    assert first.cost(0, is_current=False) < second.cost(1, is_current=False)
    slow = Health(latency_seconds=0.2 + PLACE_COST_SECONDS)
    assert slow.cost(0, is_current=False) > second.cost(1, is_current=False)
    failing = Health(latency_seconds=0.1, error_rate=0.5)
    assert failing.cost(0, is_current=False) > second.cost(1, is_current=False)


def test_who_is_asked_now_stays_for_a_small_difference() -> None:
    now, other = Health(latency_seconds=0.2), Health(latency_seconds=0.1)
    assert now.cost(1, is_current=True) < other.cost(1, is_current=False)


def test_the_budget_lets_a_burst_through_and_then_one_by_one() -> None:
    bucket = TokenBucket(per_second=10)
    assert [bucket.wait_seconds(5.0) for _ in range(20)] == [0.0] * 20
    assert bucket.wait_seconds(5.0) == pytest.approx(0.1)
    assert bucket.wait_seconds(6.0) == 0.0


def test_no_budget_is_no_limit() -> None:
    bucket = TokenBucket(per_second=0)
    assert all(bucket.wait_seconds(0.0) == 0.0 for _ in range(10_000))


@given(st.integers(1, 30_000))
def test_the_span_settles_near_the_limit_of_the_endpoint(limit) -> None:
    span, refusals = LogSpan(), 0
    for _ in range(60):
        if span.blocks > limit:
            span, refusals = span.refused(span.blocks), refusals + 1
        else:
            span = span.served(span.blocks)
    assert min(limit, 20_000) * 0.7 <= span.blocks <= limit
    assert refusals <= 14


def test_a_small_last_range_teaches_nothing() -> None:
    assert LogSpan().served(5) == LogSpan()


def test_a_higher_limit_is_found_after_a_while() -> None:
    span = LogSpan().refused(200)
    for _ in range(200):
        span = span.served(span.blocks)
    assert span.blocks > 199
