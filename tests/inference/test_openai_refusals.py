"""What the OpenAI API refuses, with which status and words, and that the process lives on."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.inference.openai_bridge import bridged
from tests.inference.openai_client import ask, post
from tests.inference.process import end, start, until_metric, until_ready

CHAT = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
HOSTILE = {
    "no model": ({"messages": CHAT["messages"]}, "model"),
    "empty messages": (CHAT | {"messages": []}, "messages"),
    "blank prompt": (CHAT | {"messages": [{"role": "user", "content": " "}]}, "empty prompt"),
    "a million words": (CHAT | {"messages": [{"role": "user", "content": "a " * 500_000}]}, "context"),
    "lone surrogate": (b'{"model":"default","messages":[{"role":"user","content":"\\ud800"}]}', ""),
    "not UTF-8": (b'{"model":"default","messages":[{"role":"user","content":"\xff"}]}', ""),
    "temperature NaN": (b'{"model":"default","messages":[],"temperature":NaN}', ""),
    "temperature -1": (CHAT | {"temperature": -1}, "temperature"),
    "temperature 1e9": (CHAT | {"temperature": 1e9}, "temperature"),
    "top_k -1": (CHAT | {"top_k": -1}, "top_k"),
    "n 10^9": (CHAT | {"n": 10**9}, "n"),
    "max_tokens 10^12": (CHAT | {"max_tokens": 10**12}, "max_tokens"),
    "seed 2^80": (CHAT | {"seed": 2**80}, "seed"),
    "logit_bias of 10^5": (CHAT | {"logit_bias": {str(i): 1 for i in range(10**5)}}, "logit_bias"),
    "logit_bias outside the vocabulary": (CHAT | {"logit_bias": {"99999999": 1}}, "vocabulary"),
    "10k stops": (CHAT | {"stop": ["x"] * 10_000}, "stop"),
    "top_logprobs 10^6": (CHAT | {"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    "a raw grammar": (CHAT | {"grammar": "root ::= root"}, "grammar"),
    "a pattern bomb": (CHAT | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(" * 20_000}}}}, "pattern"),
    "an enum bomb": (CHAT | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": list(range(5000))}}}}, "enum"),
    "a schema that is no object": (CHAT | {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "JSON schema"),
    "an image": (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
    "a tool's name with spaces": (CHAT | {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
    "a tool choice without tools": (CHAT | {"tool_choice": "required"}, "tools"),
    "10^5 brackets": (b"[" * 10**5, ""),
    "deep message": (b'{"model":"default","messages":' + b"[" * 10**5, ""),
    "tool parameters not UTF-8": (b'{"model":"default","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"title":"\xff"}}}]}', ""),
    "a schema not UTF-8": (b'{"model":"default","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"schema":{"title":"\xff"}}}}', ""),
    "a schema's number of 400 digits": (CHAT | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "minimum": 10**400}}}}, "64 bits"),
    "a repeat penalty that overflows": (CHAT | {"repeat_penalty": 1e-40}, "repeat_penalty"),
    "empty body": (b"", ""),
    "not an object": (b"[]", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_gets_a_typed_400_and_the_process_lives(served, name):
    body, words = HOSTILE[name]
    status, reply, _ = post(served[0], "/v1/chat/completions", body)
    assert status == 400, reply
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert words in reply["error"]["message"] or words == reply["error"]["param"]
    assert post(served[0], "/tokenize", {"content": "alive"})[0] == 200


def test_a_body_over_the_limit_is_refused(served):
    status, reply, _ = post(served[0], "/v1/chat/completions", b" " * (17 << 20))
    assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"model": "default"}, "prompt"),
        ("/v1/completions", {"model": "default", "prompt": []}, "prompt"),
        ("/v1/completions", {"model": "default", "prompt": ["x"] * 65}, "65 prompts"),
        ("/v1/completions", {"model": "default", "prompt": ["x", 5]}, "mixes"),
        ("/v1/completions", {"model": "default", "prompt": [10**8]}, "vocabulary"),
        ("/v1/completions", {"model": "default", "prompt": [-1]}, "prompt"),
        ("/v1/completions", {"model": "default", "prompt": ""}, "empty prompt"),
        ("/v1/completions", {"model": "default", "prompt": "x", "echo": True}, "echo"),
        ("/v1/completions", {"model": "default", "prompt": "x", "best_of": 4}, "best_of"),
        ("/v1/responses", {"model": "default", "input": []}, "input"),
        ("/v1/responses", {"model": "default", "input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ("/v1/responses", {"model": "default", "input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ("/v1/responses", {"model": "default", "input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ("/v1/responses", {"model": "default", "input": "x", "text": {"format": {"type": "json_schema"}}}, "schema"),
        ("/v1/embeddings", {"model": "default", "input": "x"}, "no embedding model"),
        ("/v1/batch", {"requests": []}, "requests"),
        ("/v1/batch", {"requests": [{"custom_id": "a", "url": "/v1/files", "body": {}}]}, "url"),
        ("/v1/batch", {"requests": [{"custom_id": "a", "url": "/v1/completions", "body": {}}] * 65}, "requests"),
        ("/tokenize", {"content": 5}, "content"),
        ("/detokenize", {"tokens": [10**8]}, "vocabulary"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)  # fmt: skip
def test_every_endpoint_refuses_what_it_cannot_do(served, path, body, words):
    status, reply, _ = post(served[0], path, body)
    assert status == 400, reply
    assert words in reply["error"]["message"] or words == reply["error"]["param"]


def test_harmless_fields_are_ignored_and_others_refused_by_name(client):
    assert ask(client, user="me", store=False, metadata={"a": "b"}).choices
    with pytest.raises(openai.BadRequestError, match="chat_template_kwargs") as caught:
        ask(client, extra_body={"chat_template_kwargs": {"x": 1}})
    assert caught.value.param == "chat_template_kwargs"
    assert caught.value.body["type"] == "invalid_request_error"


def reply_of(path, method, target, body=b""):
    """(status, headers, decoded body) straight over the Unix socket."""
    connection = http.client.HTTPConnection("x", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(str(path))
    connection.request(method, target, body)
    reply = connection.getresponse()
    return reply.status, reply.headers, json.loads(reply.read())


def test_before_the_model_is_loaded_clients_are_told_when_to_come_back(model_path, tmp_path):
    child = start(tmp_path, model_path)
    path = tmp_path / "run" / "inference.sock"
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < deadline
            assert child.poll() is None
        seen = []
        while not seen or seen[-1][0] != 200:
            assert time.monotonic() < deadline
            try:
                seen.append(reply_of(path, "GET", "/health"))
            except ConnectionError:
                continue
    finally:
        end(child)
    assert seen[0][0] == 503
    assert int(seen[0][1]["Retry-After"]) >= 1
    assert seen[0][2]["error"]["type"] == "server_error"


def test_a_full_queue_is_a_429_with_a_time_to_come_back(model_path, tmp_path):
    child = start(tmp_path, model_path, max_sequences=1, queue_requests=1)
    path = tmp_path / "run" / "inference.sock"
    try:
        until_ready(child, path)
        with bridged(path) as url:
            busy = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)
            story = [{"role": "user", "content": "Tell a very long story."}]
            open_streams = [
                ask(busy, stream=True, max_tokens=300, messages=story, logit_bias={"2": -100})
            ]
            next(iter(open_streams[0]))
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(ask, busy, max_tokens=1)
                asyncio.run(until_metric(path, "requests_deferred", 1))
                with pytest.raises(openai.RateLimitError) as caught:
                    ask(busy)
                assert int(caught.value.response.headers["Retry-After"]) >= 1
                assert caught.value.code == "rate_limit_exceeded"
                open_streams[0].close()
                assert waiting.result(30).usage.completion_tokens == 1
    finally:
        end(child)
