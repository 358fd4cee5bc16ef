"""OpenAI's bodies: whatever comes in is a bounded request or an InvalidRequest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import Busy, InvalidRequest, NotFound, TooLarge, Unavailable
from nodeapp.wire import openai
from nodeapp.wire.ipc_inference import (
    Alternative,
    Finished,
    Produced,
    Started,
    TokenLogprob,
)
from nodeapp.wire.openai_embeddings import BatchRequest, EmbeddingsRequest
from nodeapp.wire.openai_replies import Choice, usage_of
from nodeapp.wire.openai_requests import MAX_SEED, ChatRequest, CompletionRequest, following
from nodeapp.wire.openai_responses import ResponsesRequest

KINDS = (ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingsRequest, BatchRequest)
FIELDS = sorted({name for kind in KINDS for name in kind.__struct_fields__} | {"grammar", "user"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("role", "content", "type", "function", "name", "x")), inner
        )
    ),
    max_leaves=8,
)


def ask(kind, body):
    request = openai.decode(body, kind)
    if isinstance(request, ChatRequest | CompletionRequest | ResponsesRequest):
        return request.generate("r", 5)
    return request


@given(st.sampled_from(KINDS), st.binary(max_size=64))
def test_fuzz_bytes_are_a_request_or_refused(kind, body):
    with pytest.raises(InvalidRequest):
        ask(kind, body)


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_fuzz_values_are_a_request_or_refused(kind, fields):
    known = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "prompt": "x",
        "input": "x",
        "requests": [{"custom_id": "a", "url": "/v1/embeddings", "body": {}}],
    }
    given_fields = {name: known[name] for name in kind.__struct_fields__ if name in known} | fields
    try:
        ask(kind, json.dumps(given_fields).encode())
    except InvalidRequest as error:
        assert error.message  # noqa: PT017  # either outcome is right


def test_answers_of_one_question_have_following_seeds():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": MAX_SEED}
    first = ask(ChatRequest, json.dumps(body).encode())
    assert [following(first, index).sampling.seed for index in range(3)] == [MAX_SEED, 0, 1]
    assert following(first, 0) is first


def test_one_call_only_is_asked_for_by_a_stop():
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    assert ask(ChatRequest, json.dumps(body).encode()).stop == ()
    single = ask(ChatRequest, json.dumps(body | {"parallel_tool_calls": False}).encode())
    assert single.stop == ("</tool_call>",)


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request", "invalid_request_error"),
        (TooLarge("x"), 400, "context_length_exceeded", "invalid_request_error"),
        (NotFound("x"), 404, "model_not_found", "invalid_request_error"),
        (Busy("x", retry_after_seconds=0.2), 429, "rate_limit_exceeded", "rate_limit_error"),
        (Unavailable("x", retry_after_seconds=3.4), 503, "unavailable", "server_error"),
    ],
)
def test_errors_have_the_status_and_words_clients_look_for(error, status, code, kind):
    body = json.loads(openai.error_body(error))["error"]
    assert (openai.error_status(error), body["code"], body["type"]) == (status, code, kind)
    expected = (
        {"Retry-After": str(max(1, round(error.retry_after_seconds)))} if status > 404 else {}
    )
    assert openai.error_headers(error) == expected


def finished_choice(index, prompt_tokens, reason="stop"):
    choice = Choice("text", index, "")
    choice.started(Started(prompt_tokens, 100))
    choice.produced(Produced((1, 2), "ab"))
    choice.finished(Finished(reason, 2, cached_tokens=1))
    return choice


def test_a_prompt_is_counted_once_for_all_its_answers():
    choices = [
        finished_choice(0, 10),
        finished_choice(1, 10),
        finished_choice(2, 7),
        finished_choice(3, 7),
    ]
    usage = usage_of(choices, 2)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        17,
        8,
        25,
    )
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_an_answer_that_was_cut_off_says_length():
    assert finished_choice(0, 1, "cancelled").finish_reason == "length"
    assert finished_choice(0, 1, "length").finish_reason == "length"


def test_offsets_of_a_streamed_completion_go_on_from_chunk_to_chunk():
    choice = Choice("text", 0, "")

    def token(text):
        return TokenLogprob(Alternative(1, text.encode(), -0.5))

    first = choice.produced(Produced((1, 1), "abc", (token("a"), token("bc"))))
    second = choice.produced(Produced((1,), "d", (token("d"),)))
    choice.finished(Finished("stop", 3))
    chunks = [chunk["logprobs"]["text_offset"] for chunk in (*first, *second)]
    assert chunks == [[0, 1], [3]]
    assert choice.whole()["logprobs"]["text_offset"] == [0, 1, 3]
