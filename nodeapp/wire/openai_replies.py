"""Bodies and server-sent events of chat and text completions, made from the engine's events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import msgspec

from nodeapp.wire import openai
from nodeapp.wire.ipc_inference import Alternative, Finished, Produced, Started, TokenLogprob
from nodeapp.wire.tool_calls import FoundCall, Parsed, ToolCallParser

Kind = Literal["chat", "text"]
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}


@dataclass(frozen=True, slots=True)
class Head:
    """What all bodies of one reply share; `created` in Unix seconds."""

    kind: Kind
    request_id: str
    created: int
    model: str

    def body(self, rest: dict[str, object], *, is_chunk: bool) -> dict[str, object]:
        """A body with the shared fields first."""
        name = _OBJECTS[self.kind]
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": f"{name}.chunk" if is_chunk and self.kind == "chat" else name,
            "created": self.created,
            "model": self.model,
            **rest,
        }


@dataclass(slots=True)
class Choice:
    """One answer on its way: engine events in, deltas out; holds what a whole body needs."""

    kind: Kind
    index: int
    call_prefix: str
    tool_names: Sequence[str] = ()
    text: str = ""
    calls: list[FoundCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: str = ""
    completion_tokens: int = 0
    cached_tokens: int = 0
    _is_begun: bool = False
    _shown: int = 0
    """Characters of the tokens whose logprobs went out in chunks."""
    _parser: ToolCallParser = field(init=False)

    def __post_init__(self) -> None:
        self._parser = ToolCallParser(self.tool_names)

    def started(self, event: Started) -> None:
        """The prompt was accepted."""
        self.prompt_tokens = event.prompt_tokens

    def produced(self, event: Produced) -> list[dict[str, object]]:
        """Choices of the chunks that these tokens make."""
        self.logprobs += event.logprobs
        chunks = self._chunks(self._parser.feed(event.text), event.logprobs)
        self._shown += sum(len(_token(entry.chosen)) for entry in event.logprobs)
        return chunks

    def finished(self, event: Finished) -> list[dict[str, object]]:
        """Choices of the last chunks, the very last with the reason."""
        chunks = self._chunks(self._parser.flush(), ())
        self.completion_tokens = event.completion_tokens
        self.prompt_tokens = event.prompt_tokens or self.prompt_tokens
        self.cached_tokens = event.cached_tokens
        self.finish_reason = _reason(event, has_calls=bool(self.calls))
        return [*chunks, self._chunk(self._begin(), "", None, self.finish_reason)]

    def whole(self) -> dict[str, object]:
        """The choice of a body that is not streamed."""
        logprobs = self._logprobs(self.logprobs, 0)
        if self.kind == "text":
            shown: dict[str, object] = {"text": self.text}
        else:
            shown = {"message": self._message()}
        return {
            "index": self.index,
            **shown,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }

    def _message(self) -> dict[str, object]:
        message: dict[str, object] = {
            "role": "assistant",
            "content": self.text if self.text or not self.calls else None,
            "refusal": None,
        }
        if self.calls:
            message["tool_calls"] = [
                self._call(number, call) for number, call in enumerate(self.calls)
            ]
        return message

    def _chunks(self, parsed: Parsed, logprobs: Sequence[TokenLogprob]) -> list[dict[str, object]]:
        """The text's chunk carries the logprobs; a call is its name, then its arguments."""
        chunks: list[dict[str, object]] = []
        if parsed.content or logprobs:
            self.text += parsed.content
            delta = {**self._begin(), "content": parsed.content}
            chunks.append(self._chunk(delta, parsed.content, logprobs, None))
        for call in parsed.calls:
            number = len(self.calls)
            self.calls.append(call)
            opened = self._call(number, FoundCall(call.name, "")) | {"index": number}
            rest = {"index": number, "function": {"arguments": call.arguments}}
            chunks += [
                self._chunk({**self._begin(), "tool_calls": [opened]}, "", None, None),
                self._chunk({"tool_calls": [rest]}, "", None, None),
            ]
        return chunks

    def _begin(self) -> dict[str, object]:
        if self._is_begun:
            return {}
        self._is_begun = True
        return {"role": "assistant"}

    def _call(self, number: int, call: FoundCall) -> dict[str, object]:
        return {
            "id": f"call_{self.call_prefix}_{self.index}_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _chunk(
        self,
        delta: dict[str, object],
        text: str,
        logprobs: Sequence[TokenLogprob] | None,
        reason: str | None,
    ) -> dict[str, object]:
        shown: dict[str, object] = {"text": text} if self.kind == "text" else {"delta": delta}
        return {
            "index": self.index,
            **shown,
            "logprobs": self._logprobs(logprobs or (), self._shown),
            "finish_reason": reason,
        }

    def _logprobs(self, entries: Sequence[TokenLogprob], begin: int) -> dict[str, object] | None:
        if not entries:
            return None
        if self.kind == "chat":
            return {"content": [_chat_logprob(entry) for entry in entries], "refusal": None}
        return _text_logprobs(entries, begin)


def usage_of(choices: Sequence[Choice], answers: int) -> dict[str, object]:
    """Usage of a reply: a prompt is counted once, however many `answers` each one has."""
    firsts = choices[::answers]
    return openai.usage(
        sum(choice.prompt_tokens for choice in firsts),
        sum(choice.completion_tokens for choice in choices),
        sum(choice.cached_tokens for choice in firsts),
    )


def whole_body(head: Head, choices: Sequence[Choice], answers: int) -> bytes:
    """The body of a reply that is not streamed."""
    rest: dict[str, object] = {
        "choices": [choice.whole() for choice in choices],
        "usage": usage_of(choices, answers),
    }
    return msgspec.json.encode(head.body(rest, is_chunk=False))


def events_of(
    head: Head, chunks: Sequence[dict[str, object]], *, with_usage: bool
) -> Iterator[bytes]:
    """Server-sent events; with usage asked for, every event but the last has it as null."""
    for chunk in chunks:
        rest: dict[str, object] = {"choices": [chunk]}
        if with_usage:
            rest["usage"] = None
        yield openai.event(head.body(rest, is_chunk=True))


def usage_event(head: Head, choices: Sequence[Choice], answers: int) -> bytes:
    """The last event before [DONE] when usage was asked for."""
    rest: dict[str, object] = {"choices": [], "usage": usage_of(choices, answers)}
    return openai.event(head.body(rest, is_chunk=True))


def _reason(event: Finished, *, has_calls: bool) -> str:
    """A cancelled answer ends as one cut off: OpenAI has no word for it."""
    if event.reason == "stop" and has_calls:
        return "tool_calls"
    return "stop" if event.reason == "stop" else "length"


def _token(alternative: Alternative) -> str:
    return alternative.piece.decode(errors="replace")


def _entry(alternative: Alternative) -> dict[str, object]:
    return {
        "token": _token(alternative),
        "logprob": alternative.logprob,
        "bytes": list(alternative.piece),
    }


def _chat_logprob(entry: TokenLogprob) -> dict[str, object]:
    return {**_entry(entry.chosen), "top_logprobs": [_entry(other) for other in entry.top]}


def _text_logprobs(entries: Sequence[TokenLogprob], begin: int) -> dict[str, object]:
    """The older form: parallel lists; offsets in characters of the completion, from `begin`."""
    texts = [_token(entry.chosen) for entry in entries]
    offsets = list(accumulate(map(len, texts[:-1]), initial=begin))
    return {
        "tokens": texts,
        "token_logprobs": [entry.chosen.logprob for entry in entries],
        "top_logprobs": [
            {_token(other): other.logprob for other in entry.top} for entry in entries
        ],
        "text_offset": offsets,
    }
