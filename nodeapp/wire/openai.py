"""What all endpoints of the OpenAI API share: decoding, error objects, server-sent events.

Fields that are not known are refused by name, so that nobody believes a rule was followed that was
not even read; HARMLESS ones, which change nothing about the answer, are ignored, as clients send
many. `null` is the same as absent. Source: OpenAI API reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

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
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        request = msgspec.json.decode(body, type=kind)
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


MAX_MESSAGES = 512
MAX_STOP = 8
_UNSUPPORTED = ("tools", "tool_choice", "functions", "response_format", "logprobs", "logit_bias")


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class ApiMessage(msgspec.Struct, frozen=True):
    """One turn; `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...]

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True):
    """POST /v1/chat/completions."""

    model: str
    messages: Annotated[tuple[ApiMessage, ...], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=4)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    stop: str | Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_STOP)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    def turns(self) -> tuple[tuple[str, str], ...]:
        """(role, text) pairs in the marketplace's roles."""
        return tuple(
            ("system" if message.role == "developer" else message.role, message.text())
            for message in self.messages
        )

    def limit(self, default: int) -> int:
        """Most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens or default


_request_decoder = msgspec.json.Decoder(ChatRequest)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_chat(body: bytes) -> ChatRequest:
    """Read and bound a request.

    Raises:
        InvalidRequest: malformed, out of range, or a field that is not supported.
    """
    try:
        given = _object_decoder.decode(body)
        request = _request_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(str(error)) from error
    for name in _UNSUPPORTED:
        if bytes(given.get(name, msgspec.Raw(b"null"))) not in (b"null", b"false", b"[]", b"{}"):
            raise InvalidRequest(f"{name} is not supported by this marketplace yet")
    return request


def error_reply(error: NodeError) -> tuple[int, bytes]:
    """Status and OpenAI error object."""
    status = STATUS_OF_CODE.get(error.code, 400)
    kind = "invalid_request_error" if status < 429 else "server_error"
    body = {"message": error.message, "type": kind, "param": None, "code": error.code}
    return status, msgspec.json.encode({"error": body})


class Completion(msgspec.Struct, frozen=True):
    """What all bodies of one answer share."""

    id: str
    created: int
    model: str

    def chunk(self, *, text: str | None, finish_reason: str | None, is_first: bool) -> bytes:
        """One SSE event of the answer."""
        delta: dict[str, str] = {"role": "assistant"} if is_first else {}
        if text is not None:
            delta["content"] = text
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event({"choices": [choice]})

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The last SSE event before [DONE] when usage was asked for."""
        return self._event({"choices": [], "usage": _usage(prompt_tokens, completion_tokens)})

    def whole(
        self, text: str, finish_reason: str, prompt_tokens: int, completion_tokens: int
    ) -> bytes:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        body = {**msgspec.to_builtins(self), "object": "chat.completion", "choices": [choice]}
        body["usage"] = _usage(prompt_tokens, completion_tokens)
        return msgspec.json.encode(body)

    def _event(self, rest: dict[str, object]) -> bytes:
        body = {**msgspec.to_builtins(self), "object": "chat.completion.chunk", **rest}
        return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
