"""The official OpenAI client rents from the real node through the proxy."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
import pytest

from nodeapp.renter.record import newest_session, session_numbers
from tests.world import STORY, RenterHome, Started, World, until


@dataclass(frozen=True, slots=True)
class RunningProxy:
    home: RenterHome
    url: str
    client: openai.OpenAI


@contextmanager
def running_proxy(home: RenterHome) -> Iterator[RunningProxy]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = Started(
        home.directory, "proxy", "renter", "proxy", "--config", home.config, "--port", port
    )
    try:
        started.until_said("base_url")
        url = f"http://127.0.0.1:{port}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)
        yield RunningProxy(home, url, client)
    finally:
        assert started.stop() == 0


@pytest.fixture(scope="module")
def proxy(shared_world: World) -> Iterator[RunningProxy]:
    with running_proxy(shared_world.renter("proxy")) as running:
        yield running


def ask(proxy: RunningProxy, **more: object) -> openai.types.chat.ChatCompletion:
    question = {"role": "user", "content": "What is the capital of France?"}
    return proxy.client.chat.completions.create(
        model="default", messages=[question], temperature=0, max_tokens=16, **more
    )


def test_the_official_client_gets_an_answer_and_its_usage(proxy: RunningProxy) -> None:
    answer = ask(proxy)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_is_the_same_text_on_the_same_paid_session(proxy: RunningProxy) -> None:
    whole = ask(proxy)
    before = newest_session(proxy.home.state)
    chunks = list(ask(proxy, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert newest_session(proxy.home.state) == before


def test_models_lists_what_is_on_offer(proxy: RunningProxy) -> None:
    models = list(proxy.client.models.list())
    assert [model.id[:2] for model in models] == ["0x"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "default"}, "messages"),
        ({"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}, "gpt-4"),
        (
            {
                "model": "default",
                "messages": [{"role": "user", "content": "x"}],
                "tools": [{"type": "function"}],
            },
            "tools",
        ),
        ({"model": "default", "messages": [{"role": "user", "content": "x"}], "n": 99}, "n"),
        (
            {"model": "default", "messages": [{"role": "user", "content": "x"}], "grammar": "x"},
            "grammar",
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_an_error_object(
    proxy: RunningProxy, body: dict[str, object], words: str
) -> None:
    request = urllib.request.Request(
        f"{proxy.url}/v1/chat/completions", json.dumps(body).encode(), method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 400
    assert words in json.load(caught.value)["error"]["message"]


def test_a_prompt_longer_than_the_context_is_a_400_and_the_next_question_works(
    proxy: RunningProxy,
) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        proxy.client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "word " * 6000}], max_tokens=8
        )
    assert ask(proxy).usage.completion_tokens == 16


PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_schema_a_tool_and_logprobs_travel_to_the_host_and_back(proxy: RunningProxy) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    typed = ask(proxy, response_format=form)
    assert 1 <= json.loads(typed.choices[0].message.content)["age"] <= 99
    (call,) = (
        proxy.client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "What is the weather in Rome?"}],
            tools=[WEATHER],
            tool_choice="required",
            max_tokens=60,
            seed=1,
        )
        .choices[0]
        .message.tool_calls
    )
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    logged = ask(proxy, logprobs=True, top_logprobs=2)
    entries = logged.choices[0].logprobs.content
    assert len(entries) == logged.usage.completion_tokens == 16
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_completions_and_responses_are_sold_too(proxy: RunningProxy) -> None:
    texts = proxy.client.completions.create(
        model="default", prompt=["One, two,", "The sky is"], max_tokens=4, temperature=0
    )
    assert [bool(choice.text) for choice in texts.choices] == [True, True]
    assert texts.usage.completion_tokens == 8
    given = {"model": "default", "input": "Say hello.", "temperature": 0, "max_output_tokens": 6}
    whole = proxy.client.responses.create(**given)
    events = list(proxy.client.responses.create(**given, stream=True))
    assert events[-1].response.output_text == whole.output_text
    assert whole.usage.output_tokens == events[-1].response.usage.output_tokens


def test_two_answers_to_one_question_are_both_counted(proxy: RunningProxy) -> None:
    one, two = ask(proxy), ask(proxy, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.usage.completion_tokens == 2 * one.usage.completion_tokens
    assert two.usage.prompt_tokens == one.usage.prompt_tokens


def test_embeddings_are_refused_with_the_reason(proxy: RunningProxy) -> None:
    with pytest.raises(openai.BadRequestError, match="generated tokens"):
        proxy.client.embeddings.create(model="default", input="x")


MANY = 600


@pytest.mark.timeout(180)
def test_no_tokens_are_bought_for_a_client_that_stopped_reading(shared_world: World) -> None:
    home = shared_world.renter("unread", slow_reader_seconds=1.0)
    with running_proxy(home) as proxy, socket.socket() as client:
        # Events with logprobs are long, so that few tokens fill the buffers.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(proxy.url.rpartition(":")[2])))
        body = json.dumps(
            {
                "model": "default",
                "messages": [{"role": "user", "content": STORY}],
                "max_tokens": MANY,
                "stream": True,
                "logprobs": True,
                "top_logprobs": 5,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}"
        )
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        job_id = until(lambda: sessions(home), "a session paid", 60)[0]
        until(lambda: home.record(job_id).token_ids, "first tokens", 60)
        # The client was cut off when the host answers nobody: it reads nothing at all till then.
        until(lambda: open_requests(shared_world) == 0, "the answer ended", 60)
        assert 0 < len(home.record(job_id).token_ids) < MANY / 2
        assert b"[DONE]" not in rest_of(client)
        assert ask(proxy).usage.completion_tokens == 16, "the next client is served"
        assert sessions(home) == (job_id,), "on the same session"


def sessions(home: RenterHome) -> tuple[int, ...]:
    return session_numbers(home.state)


def open_requests(world: World) -> float:
    return world.metric("p2p", "fabstir_p2p_open_requests")


def rest_of(client: socket.socket) -> bytes:
    """What still comes; a cut connection ends by a reset."""
    client.settimeout(10)
    text = b""
    try:
        while piece := client.recv(65536):
            text += piece
    except ConnectionResetError:
        pass
    return text
