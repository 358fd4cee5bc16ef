"""Bodies of chat and text completion requests, and what of them is asked of the engine.

One GenerateRequest a prompt: `n` answers and prompt lists are asked one by one with following
seeds, so every transport carries the same message. Source: OpenAI API reference; top_k, min_p,
typical_p and repeat_penalty are common extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.wire.ipc_inference import (
    MAX_LOGIT_BIAS,
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TEXT_CHARACTERS,
    MAX_TOOL_CALLS,
    MAX_TOOL_CHARACTERS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    MIN_REPEAT_PENALTY,
    ChatMessage,
    GenerateRequest,
    Sampling,
    Tool,
    ToolCall,
    ToolName,
)
from nodeapp.wire.json_schema import ANY_OBJECT, check_schema
from nodeapp.wire.openai import ApiRequest

MAX_CHOICES = 8
MAX_PROMPTS = 64
MAX_SEED = (1 << 63) - 1
DEFAULT_MAX_TOKENS = 512
_ONE_CALL = ("</tool_call>",)
"""Stops after the first call; readers know that the end mark may be missing."""

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
TokenCount = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[tuple[Stop, ...], msgspec.Meta(max_length=MAX_STOP_STRINGS - 1)]
Bias = Annotated[
    dict[
        Annotated[str, msgspec.Meta(pattern="^[0-9]{1,9}$")],
        Annotated[float, msgspec.Meta(ge=-100, le=100)],
    ],
    msgspec.Meta(max_length=MAX_LOGIT_BIAS),
]
TokenIdField = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
TokenList = Annotated[tuple[TokenIdField, ...], msgspec.Meta(min_length=1, max_length=1 << 20)]


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text


class FunctionCall(msgspec.Struct, frozen=True):
    """Name and arguments of a call, the arguments as JSON text."""

    name: ToolName
    arguments: Annotated[str, msgspec.Meta(max_length=MAX_TOOL_CHARACTERS)]


class ApiToolCall(msgspec.Struct, frozen=True):
    """A call the model made, as the client sends it back."""

    id: Annotated[str, msgspec.Meta(max_length=128)]
    function: FunctionCall
    type: Literal["function"] = "function"


class ApiMessage(msgspec.Struct, frozen=True):
    """One turn; `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | tuple[TextPart, ...] | None = None
    tool_calls: (
        Annotated[tuple[ApiToolCall, ...], msgspec.Meta(max_length=MAX_TOOL_CALLS)] | None
    ) = None
    tool_call_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None

    def message(self) -> ChatMessage:
        """As the engine takes it."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in self.tool_calls or ()
        )
        if self.role != "assistant" and (self.content is None or calls):
            raise InvalidRequest(
                f"a message of role {self.role!r} needs content and takes no tool_calls",
                param="messages",
            )
        if self.role == "developer":
            return ChatMessage("system", text)
        return ChatMessage(self.role, text, calls, self.tool_call_id or "")


class FunctionTool(msgspec.Struct, frozen=True):
    """A function's name, purpose and parameters (a JSON schema)."""

    name: ToolName
    description: Annotated[str, msgspec.Meta(max_length=8192)] | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"")
    strict: bool | None = None


class ApiTool(msgspec.Struct, frozen=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(msgspec.Struct, frozen=True):
    """The function of a named tool choice."""

    name: ToolName


class NamedTool(msgspec.Struct, frozen=True):
    """`tool_choice` that names one function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["auto", "none", "required"] | NamedTool


class SchemaFormat(msgspec.Struct, frozen=True):
    """A named schema; `strict` false is enforced as well."""

    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    schema: msgspec.Raw = msgspec.Raw(ANY_OBJECT.encode())
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def schema(self) -> str:
        """The schema as JSON text; "" for text."""
        if self.type == "text":
            return ""
        if self.type == "json_object":
            return ANY_OBJECT
        if self.json_schema is None:
            raise InvalidRequest("json_schema is missing", param="response_format")
        return bytes(self.json_schema.schema).decode()


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class SamplingRequest(ApiRequest, frozen=True, kw_only=True):
    """What chat and text completions have in common."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=4)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=4096)] | None = None
    min_p: Fraction | None = None
    typical_p: Share | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=MIN_REPEAT_PENALTY, le=4)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    seed: Annotated[int, msgspec.Meta(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a usage event."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, seed: int, top_logprobs: int | None) -> Sampling:
        """With OpenAI's defaults; `seed` is used when the request has none."""
        bias = tuple((int(token), value) for token, value in (self.logit_bias or {}).items())
        chosen = abs(self.seed) if self.seed is not None else seed
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            min_p=self.min_p or 0.0,
            seed=chosen & MAX_SEED,
            typical_p=self.typical_p or 1.0,
            repeat_penalty=self.repeat_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=bias,
            top_logprobs=top_logprobs,
        )


class ChatRequest(SamplingRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[ApiMessage, ...], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[tuple[ApiTool, ...], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    def generate(self, request_id: str, seed: int) -> GenerateRequest:
        """What the engine is asked for the first choice.

        Raises:
            InvalidRequest: fields that do not go together, a schema over its bounds.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        tools = tuple(_tool(given.function) for given in self.tools or ())
        choice, name = chosen_tool(self.tool_choice, tools)
        schema = self.response_format.schema() if self.response_format is not None else ""
        if schema:
            check_schema(schema)
        return GenerateRequest(
            request_id=request_id,
            messages=tuple(message.message() for message in self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            sampling=self.sampling(seed, (self.top_logprobs or 0) if self.logprobs else None),
            stop=self.stops() + (_ONE_CALL if tools and self.parallel_tool_calls is False else ()),
            tools=tools,
            tool_choice=choice,
            tool_name=name,
            json_schema=schema,
        )


class CompletionRequest(SamplingRequest, frozen=True, kw_only=True):
    """POST /v1/completions; several prompts are a batch."""

    prompt: (
        Text
        | Annotated[
            tuple[Text | TokenIdField | TokenList, ...],
            msgspec.Meta(min_length=1, max_length=1 << 20),
        ]
    )
    max_tokens: TokenCount | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None

    def generate(self, request_id: str, seed: int) -> tuple[GenerateRequest, ...]:
        """What the engine is asked, one request for each prompt.

        Raises:
            InvalidRequest: echo, suffix, too many prompts or mixed kinds of prompt.
        """
        if self.echo or self.suffix:
            raise InvalidRequest("echo and suffix are not supported", param="echo")
        rules = GenerateRequest(
            request_id=request_id,
            max_tokens=self.max_tokens or 16,
            sampling=self.sampling(seed, self.logprobs),
            stop=self.stops(),
        )
        return tuple(
            msgspec.structs.replace(rules, prompt_text=prompt)
            if isinstance(prompt, str)
            else msgspec.structs.replace(rules, prompt_token_ids=prompt)
            for prompt in _prompts(self.prompt)
        )


def _prompts(
    given: str | Sequence[str | int | tuple[int, ...]],
) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (given,)
    numbers = tuple(entry for entry in given if isinstance(entry, int))
    if numbers:
        if len(numbers) != len(given):
            raise InvalidRequest("prompt mixes token ids and texts", param="prompt")
        return (numbers,)
    prompts = tuple(entry for entry in given if not isinstance(entry, int))
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(f"{len(prompts)} prompts, limit {MAX_PROMPTS}", param="prompt")
    return prompts


def following(request: GenerateRequest, index: int) -> GenerateRequest:
    """The request of choice `index`: the same with another seed."""
    if index == 0:
        return request
    seed = (request.sampling.seed + index) & MAX_SEED
    sampling = msgspec.structs.replace(request.sampling, seed=seed)
    return msgspec.structs.replace(
        request, sampling=sampling, request_id=f"{request.request_id}-{index}"
    )


def chosen_tool(
    choice: ToolChoice | None, tools: Sequence[Tool]
) -> tuple[Literal["auto", "none", "required"], str]:
    """(choice, name of the one tool or "").

    Raises:
        InvalidRequest: a choice without tools, or a name that is not one of theirs.
    """
    name = choice.function.name if isinstance(choice, NamedTool) else ""
    kind = "required" if isinstance(choice, NamedTool) else (choice or "auto")
    if kind == "required" and not tools:
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    if name and name not in {tool.name for tool in tools}:
        raise InvalidRequest(f"tool_choice names {name!r}, no such tool", param="tool_choice")
    return kind, name


def _tool(given: FunctionTool) -> Tool:
    return make_tool(given.name, given.description, bytes(given.parameters).decode())


def make_tool(name: str, description: str | None, parameters: str) -> Tool:
    """A tool whose parameters are inside the bounds of a schema.

    Raises:
        InvalidRequest: they are not.
    """
    if parameters == "null":
        parameters = ""
    if parameters:
        check_schema(parameters, "tools")
    return Tool(name, description or "", parameters)
