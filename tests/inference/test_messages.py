"""Messages of the inference process refuse what is out of bounds, before anything is done."""

from __future__ import annotations

import math

import msgspec
import pytest

from nodeapp.wire.ipc_inference import GenerateRequest, Produced, Started

GOOD = {"request_id": "r", "messages": [{"role": "user", "content": "hi"}]}


def decode(**changes):
    body = msgspec.msgpack.encode(GOOD | changes)
    return msgspec.msgpack.decode(body, type=GenerateRequest)


def test_a_good_request_is_read_with_its_defaults():
    request = decode()
    assert request.max_tokens == 512
    assert request.sampling.temperature == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"temperature": math.nan}},
        {"sampling": {"temperature": math.inf}},
        {"sampling": {"temperature": -0.1}},
        {"sampling": {"top_p": 0}},
        {"sampling": {"top_p": math.nan}},
        {"sampling": {"min_p": 1.5}},
        {"sampling": {"top_k": -1}},
        {"sampling": {"repeat_penalty": 1e-40}},
        {"sampling": {"seed": -1}},
        {"sampling": {"seed": 2**63}},
        {"max_tokens": 0},
        {"max_tokens": 2**40},
        {"request_id": ""},
        {"request_id": "x" * 129},
        {"stop": [""]},
        {"stop": ["x"] * 9},
        {"stop": ["x" * 129]},
        {"prompt_token_ids": [-1]},
        {"prompt_token_ids": [2**31]},
        {"messages": [{"role": "root", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "tool": 1}]},
        {"messages": [GOOD["messages"][0]] * 1025},
        {"messages": [{"role": "user", "content": "x" * ((1 << 20) + 1)}]},
        {"cache_scope": "x" * 129},
        {"grammar": "root ::="},
    ],
    ids="-".join,
)
def test_what_is_out_of_bounds_is_refused(changes):
    with pytest.raises(msgspec.ValidationError):
        decode(**changes)


def test_text_that_is_not_utf8_is_refused():
    body = msgspec.msgpack.encode(GOOD).replace(b"hi", b"\xff\xff")
    # msgspec 0.22.0: not its own DecodeError, but a ValueError too.
    with pytest.raises(UnicodeDecodeError):
        msgspec.msgpack.decode(body, type=GenerateRequest)


def test_events_are_told_apart_by_their_tag():
    kind = Started | Produced
    for event in (Started(3, 512), Produced((1, 2), "ab")):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=kind) == event
