"""Fees stay below the caps, and a replacement always offers what a pool asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import Unavailable
from nodeapp.core.fees import GWEI, FeePolicy, Fees, first_fees, replacement_fees
from nodeapp.core.units import Wei

POLICY = FeePolicy(Wei(100 * GWEI), Wei(5 * GWEI))
wei = st.integers(0, 200 * GWEI)


def test_the_first_offer_outlasts_full_blocks():
    assert first_fees(Wei(10 * GWEI), Wei(GWEI), POLICY) == Fees(21 * GWEI, GWEI)


def test_a_base_fee_above_the_cap_is_told_with_both_figures():
    with pytest.raises(Unavailable, match=r"base fee 101 gwei is above chain.max_fee_gwei 100"):
        first_fees(Wei(101 * GWEI), Wei(0), POLICY)


def test_a_replacement_without_room_below_the_cap_is_none():
    assert replacement_fees(Fees(99 * GWEI, GWEI), Wei(1), Wei(1), POLICY) is None
    assert replacement_fees(Fees(GWEI, 5 * GWEI), Wei(1), Wei(1), POLICY) is None


@given(base=wei, tip=wei)
def test_property_first_fees_are_within_the_caps(base, tip):
    if base > POLICY.max_fee:
        return
    fees = first_fees(base, tip, POLICY)
    assert base <= fees.max_fee <= POLICY.max_fee
    assert fees.priority_fee <= min(POLICY.max_priority_fee, fees.max_fee)


@given(old_max=wei, old_tip=st.integers(0, 6 * GWEI), base=wei, tip=wei)
def test_property_a_replacement_offers_an_eighth_more_of_both(old_max, old_tip, base, tip):
    old = Fees(Wei(old_max), Wei(min(old_tip, old_max)))
    new = replacement_fees(old, base, tip, POLICY)
    if new is None:
        return
    assert 8 * new.max_fee >= 9 * old.max_fee
    assert 8 * new.priority_fee >= 9 * old.priority_fee
    assert (new.max_fee, new.priority_fee) > (old.max_fee, old.priority_fee)
    assert new.priority_fee <= new.max_fee <= POLICY.max_fee
    assert new.priority_fee <= POLICY.max_priority_fee
