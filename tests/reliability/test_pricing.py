"""Money is divided exactly as the contract divides it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.pricing import Settlement, affordable_tokens, cost, settle

AMOUNTS = st.integers(1, 10**24)
PRICES = st.integers(1, 10**21)


def test_the_parts_of_a_known_settlement():
    assert settle(2_000_000, 1234, 2_000, fee_basis_points=1000) == Settlement(2222, 246, 1_997_532)


@settings(max_examples=200, deadline=None)
@given(deposit=AMOUNTS, price=PRICES, share=st.fractions(0, 1), fee=st.integers(0, 10_000))
def test_property_host_treasury_and_refund_are_the_deposit(deposit, price, share, fee):
    tokens = int(affordable_tokens(deposit, price) * share)
    parts = settle(deposit, tokens, price, fee_basis_points=fee)
    assert parts.host + parts.treasury + parts.refund == deposit
    assert min(parts.host, parts.treasury, parts.refund) >= 0
    assert parts.treasury == (tokens * price // 1000) * fee // 10_000


@settings(max_examples=200, deadline=None)
@given(deposit=AMOUNTS, price=PRICES)
def test_property_what_is_affordable_is_paid_for_and_one_more_is_over(deposit, price):
    tokens = affordable_tokens(deposit, price)
    assert cost(tokens, price) <= deposit
    assert tokens + 1 > deposit * 1000 // price


def test_more_tokens_than_the_deposit_pays_for_are_a_bug():
    with pytest.raises(ValueError, match="more than the deposit"):
        settle(100, 1_000, 1_000, fee_basis_points=0)


def test_a_price_of_nothing_affords_nothing():
    assert affordable_tokens(100, 0) == 0
