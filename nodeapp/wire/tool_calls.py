"""Tool calls in a model's text: found while it streams, for the formats models were taught.

Hermes and Qwen   <tool_call>{"name": …, "arguments": {…}}</tool_call>, several in a row
Mistral           [TOOL_CALLS][{"name": …, "arguments": {…}}, …]
Llama 3           {"name": …, "parameters": {…}} as the whole answer, <function=NAME>{…}</function>

Text that only looks like the beginning of a call is held back until it is known; what turns out
not to be a call of a declared tool is content, unchanged. Never raises for what a model wrote.
What is held back is not looked at again before its end mark has come, so the cost is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_WHOLE_REST = ("[TOOL_CALLS]", "<|python_tag|>")
_TRIGGERS = (_OPEN, _FUNCTION, *_WHOLE_REST)


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call of a declared tool; `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What became certain: content first, then the calls after it."""

    content: str = ""
    calls: tuple[FoundCall, ...] = ()


class ToolCallParser:
    """State of one answer. `feed` its text piece by piece, `flush` once at the end."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._text = ""
        self._more: list[str] = []
        """Pieces after `_text` that were not looked at yet."""
        self._awaited: str | None = None
        """The end mark without which nothing is certain; "" there is none; None: look at all."""
        self._edge = ""
        """The last characters, which may be the beginning of that mark."""
        self._has_begun = False
        self._after_call = False

    def feed(self, text: str) -> Parsed:
        """Take a piece; without declared tools everything is content at once."""
        if not self._names:
            return Parsed(text)
        self._more.append(text)
        if not self._is_worth_a_look(text):
            return Parsed()
        self._gather()
        content = ""
        calls: list[FoundCall] = []
        while True:
            released, found, is_more = self._step()
            content += released
            calls += found
            if not is_more:
                return Parsed(content, tuple(calls))

    def flush(self) -> Parsed:
        """The rest: a call that needed no end mark, or content."""
        self._gather()
        rest, self._text = self._text, ""
        if not self._names:
            return Parsed(rest)
        bare = rest.strip()
        for trigger in _WHOLE_REST:
            bare = bare.removeprefix(trigger)
        if bare.startswith(_OPEN):  # the last token before the limit may have been the brace
            bare = bare.removeprefix(_OPEN)
        calls = self._calls(bare)
        if calls:
            return Parsed("", calls)
        return Parsed("" if self._after_call and not bare else rest)

    def _is_worth_a_look(self, text: str) -> bool:
        mark = self._awaited
        if not mark:
            return mark is None
        seen = self._edge + text
        self._edge = seen[1 - len(mark) :]
        return mark in seen

    def _gather(self) -> None:
        self._text = "".join((self._text, *self._more))
        self._more.clear()
        self._awaited = None

    def _wait_for(self, mark: str) -> None:
        self._awaited = mark
        self._edge = self._text[1 - len(mark) :] if mark else ""

    def _step(self) -> tuple[str, tuple[FoundCall, ...], bool]:
        """(content, calls, whether to look again)."""
        is_at_start = not self._has_begun or self._after_call
        if is_at_start:
            bare = self._text.lstrip()
            if not bare:
                return "", (), False
            if bare[0] in "{[":
                self._wait_for("")  # may be a whole answer in JSON: flush decides
                return "", (), False
        place = min(
            (at for trigger in _TRIGGERS if (at := self._text.find(trigger)) >= 0), default=-1
        )
        if place < 0:
            count = len(self._text) - _tail_of_trigger(self._text)
            is_blank = is_at_start and not self._text[:count].strip()
            return "" if is_blank else self._take(count), (), False
        content = self._take(place)
        if is_at_start and not content.strip():
            content = ""
        calls, end = self._block()
        if end < 0:
            return content, (), False
        block = self._take(end)
        if not calls:
            return content + block, (), True
        self._after_call = True
        return content, calls, True

    def _block(self) -> tuple[tuple[FoundCall, ...], int]:
        """The calls of the block the text begins with, and where it ends; -1: not yet."""
        if self._text.startswith(_OPEN):
            end = self._find(_CLOSE)
            return self._calls(self._text[len(_OPEN) : max(end, 0)]), _past(end, _CLOSE)
        if self._text.startswith(_FUNCTION):
            end = self._find(_FUNCTION_END)
            name, _, arguments = self._text[len(_FUNCTION) : max(end, 0)].partition(">")
            return self._checked(name, _object(arguments)), _past(end, _FUNCTION_END)
        self._wait_for("")
        return (), -1

    def _find(self, mark: str) -> int:
        end = self._text.find(mark)
        if end < 0:
            self._wait_for(mark)
        return end

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        if taken.strip():
            self._has_begun, self._after_call = True, False
        return taken

    def _calls(self, text: str) -> tuple[FoundCall, ...]:
        """All of one JSON object or array, or none when one of it is no call."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return ()
        found: list[FoundCall] = []
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                return ()
            name, arguments = entry.get("name"), entry.get("arguments", entry.get("parameters"))
            call = self._checked(name, arguments)
            if not call:
                return ()
            found += call
        return tuple(found)

    def _checked(self, name: object, arguments: object) -> tuple[FoundCall, ...]:
        if isinstance(arguments, str):  # some models put the object into a string
            arguments = _object(arguments)
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return ()
        return (FoundCall(name, msgspec.json.encode(arguments).decode()),)


def _object(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def _past(place: int, mark: str) -> int:
    return place + len(mark) if place >= 0 else -1


def _tail_of_trigger(text: str) -> int:
    """Length of the longest tail that may become a trigger."""
    longest = max(map(len, _TRIGGERS)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(trigger.startswith(text[-length:]) for trigger in _TRIGGERS):
            return length
    return 0
