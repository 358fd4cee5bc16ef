"""Tool calls are found in streamed text, whatever the pieces it comes in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.wire.tool_calls import FoundCall, ToolCallParser

CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
WEATHER = FoundCall("weather", '{"city":"Rome"}')


def read(text, sizes=(1,), names=("weather", "clock")):
    parser = ToolCallParser(names)
    content, calls, at, turn = "", [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        parsed = parser.feed(text[at : at + size])
        content, calls, at, turn = (
            content + parsed.content,
            [*calls, *parsed.calls],
            at + size,
            turn + 1,
        )
    parsed = parser.flush()
    return content + parsed.content, [*calls, *parsed.calls]


@pytest.mark.parametrize("sizes", [(1,), (7,), (1000,)])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [WEATHER]),
        (f"Let me look.\n<tool_call>{CALL}</tool_call>", "Let me look.\n", [WEATHER]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [WEATHER, WEATHER]),
        (f"<tool_call>\n{CALL}", "", [WEATHER]),
        (f"[TOOL_CALLS][{CALL}]", "", [WEATHER]),
        (f"[{CALL}, {CALL}]", "", [WEATHER, WEATHER]),
        ('{"name": "weather", "parameters": {"city": "Rome"}}', "", [WEATHER]),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}', "", [WEATHER]),
        ('<function=weather>{"city": "Rome"}</function>', "", [WEATHER]),
        (
            '<tool_call>{"name": "weather", "arguments": "{\\"city\\":\\"Rome\\"}"}</tool_call>',
            "",
            [WEATHER],
        ),
    ],
)
def test_each_format_is_found(text, content, calls, sizes):
    assert read(text, sizes) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        "a < b and <tool is not",
        '{"name": "rm", "arguments": {}}',
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": 5}</tool_call> and more',
        '{"an": "answer"}',
        "[1, 2]",
        "[TOOL_CALLS]",
        "<tool_call>" + "[" * 5000,
    ],
)
def test_what_is_no_call_of_a_declared_tool_is_content_unchanged(text):
    assert read(text) == (text, [])


def test_without_tools_nothing_is_held_back():
    parser = ToolCallParser(())
    assert parser.feed(f"<tool_call>{CALL}").content == f"<tool_call>{CALL}"


def test_content_is_not_held_back_until_the_end():
    parser = ToolCallParser(("weather",))
    assert parser.feed("Once upon a time").content == "Once upon a time"


@given(st.text('<>{}[]tool_cal/ \n"n:a,', max_size=60), st.lists(st.integers(1, 9), min_size=1))
def test_property_no_text_is_lost_or_invented(text, sizes):
    content, calls = read(text, sizes)
    assert calls == []
    assert content == text


@given(
    st.dictionaries(st.text(), st.integers() | st.text()), st.lists(st.integers(1, 20), min_size=1)
)
def test_property_arguments_arrive_whole(arguments, sizes):
    text = f"<tool_call>{json.dumps({'name': 'clock', 'arguments': arguments})}</tool_call>"
    if "</tool_call>" not in json.dumps(arguments):
        content, calls = read(text, sizes)
        assert content == ""
        assert [json.loads(call.arguments) for call in calls] == [arguments]


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("<tool_call>", "</tool_call>"),
        ("<function=weather>", "</function>"),
        ("[TOOL_CALLS]", ""),
        ("", ""),
    ],
)
def test_a_long_call_costs_as_much_as_it_is_long(begin, end, monkeypatch):
    looked = []
    find = ToolCallParser._step

    def counted(parser):
        looked.append(len(parser._text))
        return find(parser)

    monkeypatch.setattr(ToolCallParser, "_step", counted)
    long = "x" * 20_000
    arguments = f'{{"city": "{long}"}}'
    inside = (
        arguments if begin.startswith("<f") else f'{{"name": "weather", "arguments": {arguments}}}'
    )
    content, calls = read(begin + inside + end)
    assert (content, calls) == ("", [FoundCall("weather", f'{{"city":"{long}"}}')])
    assert sum(looked) < 3 * len(inside)


def test_a_call_that_never_ends_is_content():
    text = "<tool_call>" + "y" * 5000
    assert read(text) == (text, [])
