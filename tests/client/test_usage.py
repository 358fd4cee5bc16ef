"""One running hash commits to every token and its place."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.usage import extend_hash, initial_hash
from tests.fakes.paid_session import MARKET

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=50)
START = initial_hash(31337, MARKET, 7)


def test_the_hashes_are_the_golden_ones():
    assert START.hex() == "b25bcd0dd01a9c86f10ff80223529df14aae6c5f9790b32585cdf05353652c50"
    assert (
        extend_hash(START, [0, 1, 49151]).hex()
        == "79b8e378c2523f4756aab19cdcc01cf2da9e879c7b525b326985d86486ca2d43"
    )


def test_every_session_begins_with_another_hash():
    others = {
        initial_hash(31337, MARKET, 8),
        initial_hash(1, MARKET, 7),
        initial_hash(31337, "0x" + "11" * 20, 7),
    }
    assert len({START} | others) == 4


@settings(max_examples=100, deadline=None)
@given(first=IDS, second=IDS)
def test_property_batches_do_not_matter(first, second):
    assert extend_hash(extend_hash(START, first), second) == extend_hash(START, first + second)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True))
def test_property_order_and_count_matter(ids):
    whole = extend_hash(START, ids)
    assert extend_hash(START, ids[::-1]) != whole
    assert extend_hash(START, ids[:-1]) != whole
