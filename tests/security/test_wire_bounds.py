"""A renter's Generate is bounded before anything behind p2p sees it."""

import msgspec
import pytest

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.envelope import check_generate
from nodeapp.wire.ipc_inference import Sampling

HUGE = "x" * (1 << 19)


def generate(**other) -> pb.Generate:
    fields = {
        "request_id": "ab" * 16,
        "model_id": "0x" + "11" * 32,
        "messages": [pb.Message(role="user", content="hello")],
        "max_tokens": 10,
    }
    return pb.Generate(**fields | other)


def test_a_plain_generate_passes():
    assert check_generate(generate()).max_tokens == 10


@pytest.mark.parametrize(
    "other",
    [
        {"model_id": HUGE},
        {"messages": [pb.Message(role=HUGE, content="hello")]},
        {"messages": [pb.Message(role="\x00" * 60_000, content="hello")]},
    ],
)
def test_a_huge_name_is_refused_and_not_echoed(other):
    with pytest.raises(InvalidRequest) as caught:
        check_generate(generate(**other))
    assert len(envelope.encode_error(caught.value)) < 1000


def test_an_error_frame_always_fits_the_frame_a_renter_reads():
    assert len(envelope.encode_error(NotFound(HUGE))) < envelope.MAX_STREAM_FRAME_BYTES


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 4.5},
        {"temperature": float("nan")},
        {"top_k": 4097},
        {"seed": 1 << 63},
        {"top_p": 1.5},
        {"min_p": float("nan")},
    ],
)
def test_what_the_engine_would_refuse_is_refused_before_money_is_reserved(sampling):
    with pytest.raises(InvalidRequest):
        check_generate(generate(sampling=pb.Sampling(**sampling)))


def test_the_largest_sampling_that_passes_is_one_the_engine_takes():
    largest = pb.Sampling(temperature=4.0, top_k=4096, seed=(1 << 63) - 1, top_p=1.0, min_p=1.0)
    choice = check_generate(generate(sampling=largest)).sampling
    taken = Sampling(choice.temperature, choice.top_k, choice.top_p, choice.min_p, choice.seed)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(taken), type=Sampling) == taken
