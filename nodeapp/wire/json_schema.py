"""Bounds of a JSON schema from outside, checked before any compiler sees it, and tools as schemas.

The compiler has limits of its own and runs in a limited child first; these are here so that what
is far too large is refused with a sentence that says what to change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.wire.ipc_inference import MAX_SCHEMA_CHARACTERS, Tool

MAX_DEPTH = 32
MAX_NODES = 5_000
MAX_ENUM_VALUES = 1_000
MAX_PATTERN_CHARACTERS = 512
MAX_REPETITIONS = 10_000
MAX_NUMBER = 1 << 64
ANY_OBJECT = '{"type":"object"}'
_COUNT = re.compile(r"\{(\d+),?(\d*)\}")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


@dataclass(slots=True)
class _Seen:
    nodes: int = 0
    enum_values: int = 0


def check_schema(text: str, param: str = "response_format") -> None:
    """Refuse a schema over the bounds above.

    Raises:
        InvalidRequest: naming the bound and what was found; not JSON; not an object.
    """
    schema = _decode(text, param)
    seen = _Seen()
    for key, value, depth in _walk(schema, 1):
        seen.nodes += 1
        if seen.nodes > MAX_NODES:
            raise InvalidRequest(f"JSON schema has over {MAX_NODES} values", param=param)
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"JSON schema is nested over {MAX_DEPTH} deep", param=param)
        _check_value(key, value, seen, param)


def is_deeper(value: object, limit: int) -> bool:
    """Whether a JSON value is nested over `limit` deep."""
    return any(depth > limit for _key, _value, depth in _walk(value, 1))


def tool_call_schema(tools: Sequence[Tool]) -> dict[str, object]:
    """A schema of `{"name": ..., "arguments": {...}}` for exactly these tools.

    Each tool's parameters become a definition, and their own references are turned to it.
    """
    calls = []
    definitions: dict[str, object] = {}
    for index, tool in enumerate(tools):
        place = f"tool_{index}"
        parameters = _decode(tool.parameters or ANY_OBJECT, "tools")
        definitions[place] = _moved(parameters, f"#/$defs/{place}")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": {"$ref": f"#/$defs/{place}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions}


def _decode(text: str, param: str) -> dict[str, object]:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise InvalidRequest(
            f"JSON schema of {len(text)} characters, limit {MAX_SCHEMA_CHARACTERS}", param=param
        )
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"JSON schema: {error}", param=param) from error


def _walk(value: object, depth: int) -> Iterator[tuple[str, object, int]]:
    """Every (key, value, depth) of a JSON value; goes no deeper than the bound and one more."""
    stack: list[tuple[str, object, int]] = [("", value, depth)]
    while stack:
        key, found, at = stack.pop()
        yield key, found, at
        if isinstance(found, dict):
            stack.extend((str(name), inner, at + 1) for name, inner in found.items())
        elif isinstance(found, list):
            stack.extend(("", inner, at + 1) for inner in found)


def _check_value(key: str, value: object, seen: _Seen, param: str) -> None:
    if key == "enum" and isinstance(value, list):
        seen.enum_values += len(value)
        if seen.enum_values > MAX_ENUM_VALUES:
            raise InvalidRequest(f"JSON schema has over {MAX_ENUM_VALUES} enum values", param=param)
    if key == "pattern" and isinstance(value, str):
        _check_pattern(value, param)
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise InvalidRequest("JSON schema has an integer of over 64 bits", param=param)
    if key in _COUNTS and isinstance(value, int | float) and value > MAX_REPETITIONS:
        raise InvalidRequest(f"JSON schema has {key} {value}, limit {MAX_REPETITIONS}", param=param)


def _check_pattern(pattern: str, param: str) -> None:
    """Short, and its counts multiplied (they may be nested) not over the bound of any count."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise InvalidRequest(
            f"JSON schema has a pattern of {len(pattern)} characters,"
            f" limit {MAX_PATTERN_CHARACTERS}",
            param=param,
        )
    counts = [max(map(int, filter(None, pair))) for pair in _COUNT.findall(pattern)]
    if math.prod(filter(None, counts)) > MAX_REPETITIONS:
        raise InvalidRequest(
            f"JSON schema has a pattern that repeats over {MAX_REPETITIONS} times", param=param
        )


def _moved(value: object, root: str) -> object:
    """The same schema with its local references starting at `root`."""
    if isinstance(value, dict):
        return {
            name: root + inner[1:]
            if name == "$ref" and isinstance(inner, str) and inner.startswith("#")
            else _moved(inner, root)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_moved(inner, root) for inner in value]
    return value
