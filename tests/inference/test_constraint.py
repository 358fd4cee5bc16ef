"""JSON schemas and tool calls as constraints: what they allow, and what hostile ones cost."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import pytest_asyncio

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.inference.constraint import (
    CACHE_GRAMMARS,
    GRAMMARS_OF_ONE,
    ConstraintMaker,
    Vocabulary,
)
from nodeapp.wire.ipc_inference import GenerateRequest, Tool
from nodeapp.wire.json_schema import check_schema

END = 256
VOCABULARY = Vocabulary(
    (*(bytes((value,)) for value in range(256)), b""),
    frozenset({END}),
    lambda text: [*text.encode()],
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "weather",
    "now",
    json.dumps(
        {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "$defs": {"city": {"enum": ["Paris", "Rome"]}},
        }
    ),
)
CLOCK = Tool("clock", "", "")


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def maker():
    made = ConstraintMaker(lambda: VOCABULARY)
    yield made
    await made.close()


def request(schema=None, **more):
    return GenerateRequest(
        "r", json_schema=json.dumps(schema) if schema is not None else "", **more
    )


def walk(constraint, text):
    """How much of the text was allowed, checked by both ways of asking."""
    for index, value in enumerate(text.encode()):
        logits = np.zeros(257, np.float32)
        constraint.restrict(logits)
        assert np.isfinite(logits[value]) == constraint.allows(value)
        if not constraint.allows(value):
            return text[:index]
        constraint.accept(value)
    return text


async def test_only_json_of_the_schema_may_be_written(maker):
    whole = '{"name": "Ann", "age": 31}'
    constraint = await maker.make(request(PERSON))
    assert walk(constraint, whole) == whole
    assert constraint.allows(END)
    assert constraint.is_finished
    other = await maker.make(request(PERSON))
    assert walk(other, '{"name": 5}') == '{"name": '
    assert not other.allows(END)


async def test_a_request_without_rules_has_no_constraint(maker):
    assert await maker.make(request()) is None
    assert await maker.make(request(tools=(WEATHER,))) is None


async def test_a_required_tool_call_names_a_tool_and_fits_its_parameters(maker):
    constraint = await maker.make(request(tools=(WEATHER, CLOCK), tool_choice="required"))
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert walk(constraint, call) == call
    assert constraint.is_finished
    wrong = await maker.make(request(tools=(WEATHER, CLOCK), tool_choice="required"))
    assert walk(wrong, call.replace("Rome", "Oslo")).endswith('"city": "')


async def test_a_named_tool_is_the_only_one(maker):
    constraint = await maker.make(
        request(tools=(WEATHER, CLOCK), tool_choice="required", tool_name="clock")
    )
    assert walk(constraint, '<tool_call>\n{"name": "weather"').endswith('{"name": "')


async def test_with_tools_a_schema_leaves_the_choice_between_answer_and_call(maker):
    for text in ('{"name": "A", "age": 1}', '<tool_call>\n{"name": "clock", "arguments": {}}'):
        constraint = await maker.make(request(PERSON, tools=(CLOCK,)))
        assert walk(constraint, text) == text


async def test_words_of_our_own_grammar_in_a_schema_stay_words(maker):
    says = Tool("say", "", '{"type":"object","properties":{"x":{"const":"start: call"}}}')
    constraint = await maker.make(request(PERSON, tools=(says,)))
    call = '<tool_call>\n{"name": "say", "arguments": {"x": "start: call"}}\n</tool_call>'
    assert walk(constraint, call) == call


async def test_a_resumed_answer_goes_on_inside_the_schema(maker):
    begun = tuple(b'{"name": "Ann"')
    constraint = await maker.make(request(PERSON, continue_token_ids=begun))
    assert walk(constraint, ', "age": 2}') == ', "age": 2}'


async def test_an_answer_that_breaks_the_schema_is_not_continued(maker):
    begun = tuple(b'{"name": 7')
    with pytest.raises(InvalidRequest, match="does not fit"):
        await maker.make(request(PERSON, continue_token_ids=begun))


async def test_one_answer_does_not_move_another_of_the_same_schema(maker):
    first = await maker.make(request(PERSON))
    compiled = maker.compiled
    second = await maker.make(request(PERSON))
    assert walk(first, '{"name"') == '{"name"'
    assert walk(second, '{"name"') == '{"name"'
    assert maker.compiled == compiled


async def test_unique_schema_spam_keeps_the_cache_bounded(maker):
    for number in range(CACHE_GRAMMARS + 8):
        await maker.make(request({"const": number}, renter=f"renter {number}"))
    assert maker.compiled == CACHE_GRAMMARS


async def test_a_renter_neither_finds_nor_pushes_out_what_another_had_compiled(maker, monkeypatch):
    asked = []
    compile_one = maker._compile

    async def counted(grammar, renter):
        asked.append(renter)
        return await compile_one(grammar, renter)

    monkeypatch.setattr(maker, "_compile", counted)
    await maker.make(request(PERSON, renter="anna"))
    await maker.make(request(PERSON, renter="ben"))
    for number in range(2 * GRAMMARS_OF_ONE):
        await maker.make(request({"const": number}, renter="ben"))
    await maker.make(request(PERSON, renter="anna"))
    assert asked == ["anna", "ben"] + ["ben"] * (2 * GRAMMARS_OF_ONE)
    kept = [renter for renter, _grammar in maker._compiled]
    assert (kept.count("anna"), kept.count("ben")) == (1, GRAMMARS_OF_ONE)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BOMBS = {
    "nested pattern": {"type": "string", "pattern": "(" * 20_000 + "a" + ")" * 20_000},
    "open groups": {"type": "string", "pattern": "((("},
    "lookbehind": {"type": "string", "pattern": "(?<=a)b"},
    "10^6 of a letter": {"type": "string", "pattern": "^a{1000000}$"},
    "10^6 or more": {"type": "string", "pattern": "a{1000000,}"},
    "up to 10^6": {"type": "string", "pattern": "a{0,1000000}"},
    "counts of counts": {"type": "string", "pattern": "^(((a{100}){100}){100}){100}$"},
    "$ref cycle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "$ref to itself": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "$ref outside": {"$ref": "http://127.0.0.1:1/x"},
    "200k enum": {"enum": [f"value {number}" for number in range(200_000)]},
    "1001 enum": {"enum": list(range(1001))},
    "10^6 items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "10^400 items": {"type": "array", "minItems": 1e300},
    "100 deep": nested(100),
    "product of alternatives": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(12)]}
            for i in range(12)
        ]
    },
    "unknown keyword": {"type": "object", "not": {}},
    "nothing fits": {"type": "string", "pattern": "^a$", "maxLength": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
async def test_a_schema_bomb_is_refused_in_time(maker, name):
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match="JSON schema"):
        await maker.make(request(BOMBS[name]))
    assert time.monotonic() - begun < 8
    assert await maker.make(request(PERSON)) is not None


@pytest.mark.parametrize(
    "pattern", ["^a{10000}$", "^(.*a.{400}b.*){20}$", "(a*)*b", "^(.*a.{12}){3}$"]
)
async def test_a_heavy_pattern_is_followed_or_refused_never_endless(maker, pattern):
    begun = time.monotonic()
    try:
        constraint = await maker.make(request({"type": "string", "pattern": pattern}))
        constraint.accept(ord('"'))
        constraint.restrict(np.zeros(257, np.float32))
    except (InvalidRequest, Unavailable):
        pass
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "{", "[" * 100_000, '{"a":' * 5000])
async def test_what_is_no_schema_is_refused(text):
    with pytest.raises(InvalidRequest, match="JSON schema"):
        check_schema(text)


@pytest.mark.parametrize("number", [10**400, -(10**30)])
async def test_an_integer_too_large_for_the_compiler_is_refused(maker, number):
    with pytest.raises(InvalidRequest, match="64 bits"):
        await maker.make(request({"type": "integer", "minimum": number}))


async def test_tool_parameters_have_the_same_bounds(maker):
    tool = Tool("f", "", json.dumps(BOMBS["1001 enum"]))
    with pytest.raises(InvalidRequest, match="enum"):
        await maker.make(request(tools=(tool,), tool_choice="required"))
