"""Which endpoints are believed: in time, the common head, the vote."""

from __future__ import annotations

from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.agreement import common_head, out_of_time, vote
from nodeapp.evm.rpc import Block

NOW = 10_000.0


def _at(timestamp: float) -> Block:
    return Block(BlockNumber(1), "0x", "0x", BlockTime(int(timestamp)), Wei(0))


def test_an_endpoint_whose_newest_block_is_old_does_not_count() -> None:
    heads = {"a": _at(NOW - 2), "b": _at(NOW - 61 - 2), "c": _at(NOW - 30)}
    assert out_of_time(heads, unix_seconds=NOW) == {"b"}


def test_a_chain_that_stands_still_everywhere_counts() -> None:
    heads = {"a": _at(NOW - 9000), "b": _at(NOW - 9001)}
    assert out_of_time(heads, unix_seconds=NOW) == frozenset()


def test_a_block_from_the_future_does_not_make_the_others_old() -> None:
    heads = {"a": _at(NOW + 3600), "b": _at(NOW - 1)}
    assert out_of_time(heads, unix_seconds=NOW) == {"a"}


def test_a_chain_sent_into_the_future_counts() -> None:
    heads = {"a": _at(NOW + 3600), "b": _at(NOW + 3601)}
    assert out_of_time(heads, unix_seconds=NOW) == frozenset()


def test_the_common_head_is_what_most_have() -> None:
    assert common_head([7]) == 7
    assert common_head([1007, 7]) == 7
    assert common_head([9, 1007, 8]) == 9
    assert common_head([9, 7, 8, 1007]) == 8


def test_more_than_half_decide() -> None:
    verdict = vote({"a": "x", "b": "y", "c": "x"})
    assert (verdict.hash, verdict.winners, verdict.losers) == ("x", ("a", "c"), ("b",))
    assert vote({"a": "x"}).hash == "x"


def test_a_tie_decides_nothing() -> None:
    assert vote({"a": "x", "b": "y"}).hash is None
    assert vote({"a": "x", "b": "y", "c": "y", "d": "x"}).winners == ()
    assert vote({}).hash is None
