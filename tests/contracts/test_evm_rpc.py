"""What endpoints say: refusals in the providers' words, results of a wrong shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.evm.errors import Refusal, Reverted, WrongShape
from nodeapp.evm.rpc import (
    Meaning,
    as_block,
    as_bytes,
    as_hash,
    as_logs,
    as_quantity,
    meaning_of,
    read_answer,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
)
HASH = "0x" + "ab" * 32


def _failure(code: int, message: str):
    failure = read_answer({"error": {"code": code, "message": message}}).failure
    assert failure is not None
    return failure


@pytest.mark.parametrize(
    ("code", "message", "meaning"),
    [
        (-32005, "query returned more than 10000 results", Meaning.TOO_LARGE),
        (-32602, "query exceeds max block range 100000", Meaning.TOO_LARGE),
        (-32000, "exceed maximum block range: 50000", Meaning.TOO_LARGE),
        (-32701, "Please specify an address or limit the block range", Meaning.TOO_LARGE),
        (-32600, "eth_getLogs is limited to a 10,000 range", Meaning.TOO_LARGE),
        (-32602, "Log response size exceeded.", Meaning.TOO_LARGE),
        (-32614, "eth_getLogs requests with up to a 10 block range", Meaning.TOO_LARGE),
        (-32005, "limit exceeded", Meaning.LIMITED),
        (-32016, "over rate limit", Meaning.LIMITED),
        (429, "Your app has exceeded its compute units per second capacity", Meaning.LIMITED),
        (-32007, "25/second request limit reached", Meaning.LIMITED),
        (-32000, "header not found", Meaning.LACKING),
        (-32000, "missing trie node 1f", Meaning.LACKING),
        (-32000, "invalid block range params", Meaning.LACKING),
        (-32603, "internal error", Meaning.BROKEN),
        (-32601, "the method does not exist", Meaning.BROKEN),
        (3, "execution reverted: Too many", Meaning.ANSWER),
        (-32000, "nonce too low", Meaning.ANSWER),
    ],
)
def test_refusals_of_log_queries_are_told_apart(code, message, meaning) -> None:
    assert meaning_of("eth_getLogs", _failure(code, message)) is meaning


def test_a_refused_transaction_is_an_answer_whatever_the_code() -> None:
    failure = _failure(-32603, "already known")
    assert meaning_of("eth_sendRawTransaction", failure) is Meaning.ANSWER


@given(JSON)
def test_garbage_is_a_wrong_shape_or_decoded_but_never_another_error(garbage) -> None:
    for decode in (as_quantity, as_hash, as_bytes, as_block, as_logs(0, 9), read_answer):
        try:
            decode(garbage)
        except WrongShape:
            continue


def _log(block: int, index: int, data: str = "0x"):
    return {
        "address": "0x" + "11" * 20,
        "blockHash": HASH,
        "blockNumber": hex(block),
        "transactionHash": HASH,
        "logIndex": hex(index),
        "topics": [HASH],
        "data": data,
    }


def test_repeated_logs_count_once_and_come_in_chain_order() -> None:
    logs = [_log(7, 1), _log(5, 0), _log(7, 1), {**_log(6, 0), "removed": True}]
    assert as_logs(5, 7)(logs) == (_log(5, 0), _log(7, 1))


@pytest.mark.parametrize(
    "logs",
    [
        {},
        [_log(4, 0)],
        [_log(8, 0)],
        [_log(5, 0), _log(5, 0, "0x01")],
        [{**_log(5, 0), "blockHash": None}],
        [{**_log(5, 0), "topics": [HASH] * 5}],
        [{**_log(5, 0), "data": "0x1"}],
    ],
)
def test_logs_that_cannot_be_are_a_wrong_shape(logs) -> None:
    with pytest.raises(WrongShape):
        as_logs(5, 7)(logs)


@pytest.mark.parametrize(
    ("reason", "refusal"),
    [
        ("Not active", Refusal.ENDED),
        ("Dispute wait", Refusal.TOO_EARLY),
        ("Must wait dispute window", Refusal.TOO_EARLY),
        ("Excessive tokens claimed", Refusal.TOO_FAST),
        ("Too many", Refusal.TOO_FAST),
        ("custom error 0xd93c0665", Refusal.PAUSED),
        ("something new", Refusal.OTHER),
        ("", Refusal.OTHER),
    ],
)
def test_revert_strings_of_every_generation_have_one_meaning(reason, refusal) -> None:
    assert Reverted("submitProofOfWork", reason).refusal is refusal
