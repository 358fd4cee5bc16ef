"""The OpenAI chat API, as far as it is spoken here: requests in, JSON bodies and SSE out.

Fields that would change the answer and are not supported are refused by name; harmless unknown
fields are ignored, as clients send many. Source: OpenAI API reference, chat completions.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nodeapp.core.errors import InvalidRequest, NodeError

MAX_MESSAGES = 512
MAX_STOP = 8
DONE = b"data: [DONE]\n\n"
STATUS_OF_CODE = {
    "invalid_request": 400,
    "unauthorised": 401,
    "payment_required": 402,
    "not_found": 404,
    "too_large": 400,
    "busy": 429,
    "unavailable": 503,
}
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


def model_list(models: tuple[tuple[str, str], ...], created: int) -> bytes:
    """GET /v1/models: (id, owner) pairs."""
    data = [
        {"id": name, "object": "model", "created": created, "owned_by": owner}
        for name, owner in models
    ]
    return msgspec.json.encode({"object": "list", "data": data})


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
