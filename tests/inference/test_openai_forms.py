"""Answers in a form that was asked for: JSON, a schema, a tool call."""

from __future__ import annotations

import json

import openai
import pytest

from tests.inference.openai_client import PERSON, QUESTION, WEATHER, ask


def test_json_mode_gives_an_object(client):
    answer = ask(
        client,
        response_format={"type": "json_object"},
        max_tokens=200,
        messages=[
            {"role": "user", "content": "Reply with a small JSON object about a cat, with one key."}
        ],
        seed=3,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_a_json_schema_is_kept_hot_or_cold(client, temperature):
    form = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": PERSON, "strict": True},
    }
    answer = ask(client, response_format=form, temperature=temperature, max_tokens=80)
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"}
    assert 1 <= person["age"] <= 99
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool_call_that_must_be_made_is_made(client, choice):
    answer = ask(client, tools=[WEATHER], tool_choice=choice, max_tokens=60)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason == "tool_calls"
    follow_up = [
        QUESTION,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees, rain"},
    ]
    assert ask(client, tools=[WEATHER], messages=follow_up).choices[0].finish_reason in (
        "stop",
        "length",
        "tool_calls",
    )


def test_a_streamed_tool_call_comes_as_deltas(client):
    chunks = list(ask(client, tools=[WEATHER], tool_choice="required", max_tokens=60, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].function.name == "get_weather"
    assert deltas[0].id
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tool_choice_none_calls_nothing(client):
    assert ask(client, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls is None


def test_a_schema_that_cannot_be_followed_to_its_end_is_an_error_not_an_answer(client):
    maze = {"type": "string", "pattern": "^(.*a.{400}b.*){20}$"}
    form = {"type": "json_schema", "json_schema": {"name": "maze", "schema": maze}}
    with pytest.raises(openai.InternalServerError, match="schema"):
        ask(client, response_format=form, max_tokens=400)
    assert ask(client).choices
