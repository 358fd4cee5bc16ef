"""The text subset of POST /v1/responses: request, body and stream events.

Not here: tools, images, stored responses and conversations; each is refused by name.
Source: OpenAI API reference, Responses and its streaming events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.wire import openai
from nodeapp.wire.ipc_inference import MAX_MESSAGES, ChatMessage, GenerateRequest, Sampling
from nodeapp.wire.json_schema import ANY_OBJECT, check_schema
from nodeapp.wire.openai_replies import Choice
from nodeapp.wire.openai_requests import DEFAULT_MAX_TOKENS, Share, Text, TokenCount


class InputText(msgspec.Struct, frozen=True):
    """A part of an input message; `output_text` is a part of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: Text


class InputMessage(msgspec.Struct, frozen=True):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | tuple[InputText, ...]
    type: Literal["message"] = "message"

    def message(self) -> ChatMessage:
        """As the engine takes it."""
        given = self.content
        text = given if isinstance(given, str) else "".join(part.text for part in given)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class TextFormat(msgspec.Struct, frozen=True):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    schema: msgspec.Raw = msgspec.Raw(b"")
    strict: bool | None = None
    description: str | None = None


class TextRules(msgspec.Struct, frozen=True):
    """`text` of a request."""

    format: TextFormat = TextFormat()
    verbosity: str | None = None


class ResponsesRequest(openai.ApiRequest, frozen=True, kw_only=True):
    """POST /v1/responses."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    input: (
        Text
        | Annotated[tuple[InputMessage, ...], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    )
    instructions: Text | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=4)] | None = None
    top_p: Share | None = None
    text: TextRules | None = None
    stream: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None

    def generate(self, request_id: str, seed: int) -> GenerateRequest:
        """What the engine is asked.

        Raises:
            InvalidRequest: a schema that is missing or over its bounds.
        """
        turns = [ChatMessage("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            turns.append(ChatMessage("user", self.input))
        else:
            turns += [message.message() for message in self.input]
        return GenerateRequest(
            request_id=request_id,
            messages=tuple(turns),
            max_tokens=self.max_output_tokens or DEFAULT_MAX_TOKENS,
            sampling=Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=self.top_p or 1.0,
                seed=seed,
            ),
            json_schema=self._schema(),
        )

    def _schema(self) -> str:
        form = self.text.format if self.text is not None else TextFormat()
        if form.type == "text":
            return ""
        if form.type == "json_object":
            return ANY_OBJECT
        schema = bytes(form.schema).decode()
        if not schema:
            raise InvalidRequest("schema is missing", param="text.format")
        check_schema(schema, "text.format")
        return schema


@dataclass(slots=True)
class ResponseWriter:
    """Bodies and events of one response; `created` in Unix seconds."""

    request: ResponsesRequest
    request_id: str
    created: int
    _sequence: int = 0

    def body(self, status: str, choice: Choice | None = None) -> dict[str, object]:
        """The response object; without a choice it has no output yet."""
        request = self.request
        is_cut = status == "incomplete"
        return {
            "id": f"resp_{self.request_id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": {},
            "model": request.model,
            "output": [] if choice is None else [self._item(status, choice.text)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": (request.text or TextRules()).format.type}},
            "tool_choice": "none",
            "tools": [],
            "top_p": request.top_p or 1.0,
            "truncation": "disabled",
            "usage": None if choice is None else _usage(choice),
        }

    def begin(self) -> Iterator[bytes]:
        """Events before the first text."""
        body = self.body("in_progress")
        yield self._event("response.created", {"response": body})
        yield self._event("response.in_progress", {"response": body})
        item = {**self._item("in_progress", ""), "content": []}
        yield self._event("response.output_item.added", {"output_index": 0, "item": item})
        yield self._event("response.content_part.added", {**self._place(), "part": _part("")})

    def delta(self, text: str) -> bytes:
        """A piece of text."""
        return self._event(
            "response.output_text.delta", {**self._place(), "delta": text, "logprobs": []}
        )

    def end(self, choice: Choice) -> Iterator[bytes]:
        """Events after the last text; the last one carries the whole response."""
        status = status_of(choice)
        done = {**self._place(), "text": choice.text, "logprobs": []}
        yield self._event("response.output_text.done", done)
        part = {**self._place(), "part": _part(choice.text)}
        yield self._event("response.content_part.done", part)
        item = self._item(status, choice.text)
        yield self._event("response.output_item.done", {"output_index": 0, "item": item})
        yield self._event(f"response.{status}", {"response": self.body(status, choice)})

    def _item(self, status: str, text: str) -> dict[str, object]:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_part(text)],
        }

    @property
    def _item_id(self) -> str:
        return f"msg_{self.request_id}"

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, name: str, rest: dict[str, object]) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return openai.event({"type": name, "sequence_number": number, **rest}, name)


def status_of(choice: Choice) -> str:
    """Completed, or incomplete when the limit cut it off."""
    return "completed" if choice.finish_reason == "stop" else "incomplete"


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(choice: Choice) -> dict[str, object]:
    return {
        "input_tokens": choice.prompt_tokens,
        "input_tokens_details": {"cached_tokens": choice.cached_tokens},
        "output_tokens": choice.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": choice.prompt_tokens + choice.completion_tokens,
    }
