"""Prices between people and chain: what is shown reads back, what the chain cannot say is refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.amounts import amount_of, price_of
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import NATIVE, Address

USDC = Address("0x" + "11" * 20)


@given(st.integers(min_value=1, max_value=10**17), st.booleans())
def test_property_an_amount_that_is_shown_reads_back_as_the_same_price(price, native):
    amount = amount_of(price, NATIVE if native else USDC).partition(" ")[0]
    if Decimal(amount) <= 10**9:
        assert price_of(amount, native=native) == price


@pytest.mark.parametrize("amount", ["", "two", "-1", "0", "nan", "inf", "1e10", "0.0001"])
def test_an_amount_that_the_chain_cannot_say_is_refused(amount):
    with pytest.raises(InvalidRequest):
        price_of(amount, native=False)
