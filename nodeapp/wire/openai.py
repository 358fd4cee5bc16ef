"""What all endpoints of the OpenAI API share: decoding, error objects, server-sent events.

Fields that are not known are refused by name, so that nobody believes a rule was followed that was
not even read; HARMLESS ones, which change nothing about the answer, are ignored, as clients send
many. `null` is the same as absent. Source: OpenAI API reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from nodeapp.core.errors import InvalidRequest, NodeError

DONE = b"data: [DONE]\n\n"
STATUS_OF_CODE = {
    "invalid_request": 400,
    "protocol_violation": 400,
    "unauthorised": 401,
    "payment_required": 402,
    "not_found": 404,
    "too_large": 400,
    "busy": 429,
    "corrupt": 500,
    "unavailable": 503,
}
_CODE_NAMES = {
    "too_large": "context_length_exceeded",
    "busy": "rate_limit_exceeded",
    "not_found": "model_not_found",
}
"""OpenAI's names, which clients look for, of codes that have one."""
HARMLESS = frozenset(
    {
        "metadata", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
        "safety_identifier", "service_tier", "store", "user", "verbosity",
    }
)  # fmt: skip
_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_NOTHING = (b"null", b"false", b"[]", b"{}")

Request = TypeVar("Request", bound=msgspec.Struct)


class ApiRequest(msgspec.Struct, frozen=True):
    """Base of request bodies; unknown fields are sorted out by `decode`."""


def decode(body: bytes, kind: type[Request]) -> Request:
    """Read and bound a request body.

    Raises:
        InvalidRequest: malformed, out of range or a field that is not supported; `param` says
            which.
    """
    try:
        text = body.decode()  # what is kept raw is not looked at by msgspec
        given = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        request = msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        place = _PLACE.search(str(error))
        raise InvalidRequest(str(error), param=place[1] if place else "") from error
    for name in given.keys() - set(kind.__struct_fields__) - HARMLESS:
        if bytes(given[name]) not in _NOTHING:
            raise InvalidRequest(f"{name[:64]!r} is not supported", param=name[:64])
    return request


def error_status(error: NodeError) -> int:
    """The HTTP status of an error."""
    return STATUS_OF_CODE.get(error.code, 400)


def error_body(error: NodeError) -> bytes:
    """OpenAI's error object."""
    status = error_status(error)
    kind = "invalid_request_error"
    if status >= 429:
        kind = "rate_limit_error" if status == 429 else "server_error"
    body = {
        "message": error.message,
        "type": kind,
        "param": error.param or None,
        "code": _CODE_NAMES.get(error.code, error.code),
    }
    return msgspec.json.encode({"error": body})


def error_headers(error: NodeError) -> dict[str, str]:
    """Retry-After, when the error says when."""
    if error.retry_after_seconds is None:
        return {}
    return {"Retry-After": str(max(1, round(error.retry_after_seconds)))}


def event(body: object, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(body) + b"\n\n"


def error_event(error: NodeError) -> bytes:
    """An error in mid-stream, after which the stream ends without [DONE]."""
    return b"data: " + error_body(error) + b"\n\n"


def model_list(models: Sequence[tuple[str, str]], created: int) -> bytes:
    """GET /v1/models: (id, owner) pairs."""
    return msgspec.json.encode(
        {"object": "list", "data": [model_entry(name, owner, created) for name, owner in models]}
    )


def model_entry(name: str, owner: str, created: int) -> dict[str, object]:
    """One model of the list, and the answer of GET /v1/models/NAME."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, object]:
    """The usage object of chat and text completions."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
