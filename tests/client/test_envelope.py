"""Frames of the renter's wire are decoded and bounded once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import Busy, InvalidRequest, ProtocolViolation, Rejected
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.envelope import ChatMessage, check_generate

USER = pb.Message(role="user", content="hello")


def generate(**changes) -> pb.Generate:
    fields = {
        "request_id": "0a" * 16,
        "model_id": "0x" + "11" * 32,
        "messages": [USER],
        "max_tokens": 10,
        "sampling": pb.Sampling(temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, seed=7),
        "stop": ["END"],
    }
    return pb.Generate(**fields | changes)


def test_a_generate_becomes_a_command():
    frame = envelope.encode(generate=generate())
    command = check_generate(envelope.decode(frame).generate)
    assert (command.request_id, command.max_tokens, command.stop) == ("0a" * 16, 10, ("END",))
    assert command.messages == (ChatMessage("user", "hello"),)
    choice = command.sampling
    assert (choice.temperature, choice.top_k, choice.seed) == (0.5, 40, 7)
    assert (choice.top_p, choice.min_p) == pytest.approx((0.9, 0.05))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "0A" * 16}, "request_id"),
        ({"request_id": "0a" * 17}, "request_id"),
        ({"messages": []}, "messages"),
        ({"messages": [USER] * (envelope.MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [pb.Message(role="judge", content="x")]}, "role"),
        (
            {"messages": [pb.Message(role="assistant", tool_calls=[pb.ToolCall(name="a b")])]},
            "name",
        ),
        ({"tools": [pb.Tool(name="f")] * 129}, "tools"),
        ({"tools": [pb.Tool(name="f", parameters="[]")]}, "schema"),
        ({"tools": [pb.Tool(name="f")], "tool_name": "g"}, "tool_name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [pb.Tool(name="f")], "tool_choice": "perhaps"}, "tool_choice"),
        ({"json_schema": '{"enum": [' + "1," * 1000 + "1]}"}, "enum"),
        ({"prompt_text": "and also"}, "prompt_text"),
        ({"sampling": pb.Sampling(typical_p=2)}, "typical_p"),
        ({"sampling": pb.Sampling(repeat_penalty=-1)}, "repeat_penalty"),
        ({"sampling": pb.Sampling(frequency_penalty=float("nan"))}, "frequency_penalty"),
        ({"sampling": pb.Sampling(logit_bias={7: float("inf")})}, "logit_bias"),
        ({"sampling": pb.Sampling(logit_bias=dict.fromkeys(range(1025), 1))}, "logit_bias"),
        ({"sampling": pb.Sampling(logprobs=True, top_logprobs=6)}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"max_tokens": 1_000_001}, "max_tokens 1000001"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"stop": ["x" * 129]}, "stop"),
        ({"sampling": pb.Sampling(temperature=-0.1)}, "temperature"),
        ({"sampling": pb.Sampling(temperature=float("inf"))}, "temperature"),
        ({"sampling": pb.Sampling(top_p=float("nan"))}, "top_p"),
    ],
)
def test_a_field_out_of_bounds_is_named(changes, why):
    with pytest.raises(InvalidRequest, match=why):
        check_generate(generate(**changes))


def test_the_largest_generate_passes():
    command = check_generate(
        generate(
            messages=[USER] * envelope.MAX_MESSAGES, max_tokens=1_000_000, stop=["x" * 128] * 8
        )
    )
    assert len(command.messages) == envelope.MAX_MESSAGES


@pytest.mark.parametrize("frame", [b"", b"\xff", b"\x0a\xff", b"\xff" * 40])
def test_a_frame_that_says_nothing_is_a_violation(frame):
    with pytest.raises(ProtocolViolation):
        envelope.decode(frame)


@settings(max_examples=300, deadline=None)
@given(frame=st.binary(max_size=120))
def test_property_garbage_is_an_envelope_or_a_violation(frame):
    try:
        message = envelope.decode(frame)
    except ProtocolViolation:
        return
    assert message.WhichOneof("body") is not None


@settings(max_examples=150, deadline=None)
@given(
    request_id=st.text(max_size=40),
    max_tokens=st.integers(0, 2**32 - 1),
    role=st.text(max_size=10),
    stop=st.lists(st.text(max_size=140), max_size=10),
    temperature=st.floats(width=32),
    top_p=st.floats(width=32),
)
def test_property_any_generate_is_bounded_or_invalid(
    request_id, max_tokens, role, stop, temperature, top_p
):
    message = generate(
        request_id=request_id,
        max_tokens=max_tokens,
        messages=[pb.Message(role=role, content="x")],
        stop=stop,
        sampling=pb.Sampling(temperature=temperature, top_p=top_p),
    )
    try:
        command = check_generate(message)
    except InvalidRequest:
        return
    assert 1 <= command.max_tokens <= 1_000_000
    assert 0 <= command.sampling.temperature <= 10
    assert 0 <= command.sampling.top_p <= 1


def test_an_error_crosses_the_wire_as_what_it_was():
    frame = envelope.encode_error(Busy("full", retry_after_seconds=1.5))
    error = envelope.error_of(envelope.decode(frame).error)
    assert (type(error), error.message, error.retry_after_seconds) == (Busy, "full", 1.5)


def test_an_error_code_of_a_newer_host_is_a_rejection():
    error = envelope.error_of(pb.Error(code="teapot", message="short"))
    assert (type(error), error.retry_after_seconds) == (Rejected, None)
