"""The renter's wire: varint-framed protobuf envelopes, decoded and bounded once, here.

Source of the messages: fabstir.proto beside this file (regenerate with `make proto`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import DecodeError

from nodeapp.core.errors import (
    Corrupt,
    InvalidRequest,
    NodeError,
    ProtocolViolation,
    Unavailable,
    from_code,
)
from nodeapp.core.ids import ModelId, RequestId
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.ipc_inference import (
    MAX_LOGIT_BIAS,
    MAX_TOOL_CALLS,
    MAX_TOOL_CHARACTERS,
    MAX_TOOLS,
    MIN_REPEAT_PENALTY,
    GenerateRequest,
    Tool,
)
from nodeapp.wire.json_schema import check_schema

INFERENCE_PROTOCOL = "/fabstir/inference/1.0.0"
CAPABILITY_PROTOCOL = "/fabstir/caps/1.0.0"
RESULTS_PROTOCOL = "/fabstir/results/1.0.0"
PROTOCOL_VERSION = 1
MAX_REQUEST_FRAME_BYTES = 1 << 20
MAX_STREAM_FRAME_BYTES = 64 << 10
RESULT_PART_BYTES = 60 << 10
MAX_MESSAGES = 512
MAX_STOP_STRINGS = 8
MAX_STOP_CHARACTERS = 128
MAX_MODEL_ID_CHARACTERS = 66
MAX_ERROR_CHARACTERS = 500
MAX_TEMPERATURE = 4
MAX_TOP_K = 4096
MAX_SEED = (1 << 63) - 1
"""The three are what the engine takes: what passes here is not refused behind the reservation."""
MAX_CONTINUE_IDS = 1 << 17
MAX_TOKEN_ID = (1 << 31) - 1
ROLES = frozenset({"system", "user", "assistant", "tool"})
ToolChoice = Literal["auto", "none", "required"]
TOOL_CHOICES: tuple[ToolChoice, ...] = ("auto", "none", "required")
MAX_TOP_LOGPROBS = 5
"""More would not fit a frame together with a full window of tokens."""
MAX_CALL_ID_CHARACTERS = 128
MAX_DESCRIPTION_CHARACTERS = 8192
MAX_BIAS = 100
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn; calls as (id, name, arguments)."""

    role: str
    content: str
    tool_calls: tuple[tuple[str, str, str], ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """How the renter wants tokens chosen; 0 switches a rule off, temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    typical_p: float = 0.0
    repeat_penalty: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateCommand:
    """A bounded, well-formed Generate."""

    request_id: RequestId
    model_id: ModelId
    messages: tuple[ChatMessage, ...]
    max_tokens: int
    sampling: SamplingChoice
    stop: tuple[str, ...]
    continue_ids: tuple[int, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""
    json_schema: str = ""
    prompt_text: str = ""


def encode(**body: object) -> bytes:
    """One frame; the keyword names the body, as in `ping=pb.Ping(nonce=1)`."""
    return pb.Envelope(**body).SerializeToString()  # type: ignore[arg-type]  # oneof by name


def decode(frame: bytes) -> pb.Envelope:
    """Parse one frame.

    Raises:
        ProtocolViolation: not an envelope, or an envelope without a known body.
    """
    envelope = pb.Envelope()
    try:
        envelope.ParseFromString(frame)
    except DecodeError as error:
        raise ProtocolViolation("frame is not a protobuf envelope") from error
    if envelope.WhichOneof("body") is None:
        raise ProtocolViolation("envelope has no known body")
    return envelope


def encode_error(error: NodeError) -> bytes:
    """An error on its way to the peer: what it may fix, nothing of our inside."""
    retry = round((error.retry_after_seconds or 0) * 1000)
    message = error.message[:MAX_ERROR_CHARACTERS]
    return encode(error=pb.Error(code=error.code, message=message, retry_after_ms=retry))


def error_of(message: pb.Error) -> NodeError:
    """Rebuild the error the peer sent; its troubles are never ours (Corrupt ends a process)."""
    retry = message.retry_after_ms / 1000 if message.retry_after_ms else None
    text = message.message[:MAX_ERROR_CHARACTERS]
    if message.code == Corrupt.code:
        return Unavailable(text, retry_after_seconds=retry)
    return from_code(message.code, text, retry)


def check_generate(message: pb.Generate) -> GenerateCommand:
    """Bound every field of a Generate.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    if len(message.request_id) != 32 or not set(message.request_id) <= _HEX:
        raise InvalidRequest("request_id must be 32 lower-case hex digits")
    if len(message.model_id) > MAX_MODEL_ID_CHARACTERS:
        raise InvalidRequest(f"model_id is longer than {MAX_MODEL_ID_CHARACTERS} characters")
    if message.prompt_text and message.messages:
        raise InvalidRequest("messages or prompt_text, not both")
    if not message.prompt_text and not 1 <= len(message.messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"{len(message.messages)} messages, 1 to {MAX_MESSAGES} allowed")
    if not 1 <= message.max_tokens <= 1_000_000:
        raise InvalidRequest(f"max_tokens {message.max_tokens} is not in 1 to 1000000")
    if len(message.stop) > MAX_STOP_STRINGS or any(
        not 1 <= len(text) <= MAX_STOP_CHARACTERS for text in message.stop
    ):
        raise InvalidRequest(
            f"stop allows {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
        )
    return GenerateCommand(
        request_id=RequestId(message.request_id),
        model_id=ModelId(message.model_id),
        messages=tuple(_check_turn(turn) for turn in message.messages),
        max_tokens=message.max_tokens,
        sampling=_check_sampling(message.sampling),
        stop=tuple(message.stop),
        continue_ids=_check_continue_ids(message),
        tools=tuple(_check_tool(tool) for tool in message.tools[: MAX_TOOLS + 1]),
        tool_choice=_check_tool_choice(message),
        tool_name=message.tool_name,
        json_schema=_check_schema(message.json_schema),
        prompt_text=message.prompt_text,
    )


def put_rules(message: pb.Generate, request: GenerateRequest) -> None:
    """Put an API request's turns, sampling, stops, tools and schema into a Generate."""
    given = request.sampling
    del message.messages[:]
    for turn in request.messages:
        calls = [
            pb.ToolCall(id=call.call_id, name=call.name, arguments=call.arguments)
            for call in turn.tool_calls
        ]
        message.messages.add(
            role=turn.role,
            content=turn.content,
            tool_calls=calls,
            tool_call_id=turn.tool_call_id,
        )
    message.sampling.CopyFrom(
        pb.Sampling(
            temperature=given.temperature,
            top_p=_off(given.top_p),
            top_k=given.top_k,
            min_p=given.min_p,
            seed=given.seed,
            typical_p=_off(given.typical_p),
            repeat_penalty=_off(given.repeat_penalty),
            frequency_penalty=given.frequency_penalty,
            presence_penalty=given.presence_penalty,
            logit_bias=dict(given.logit_bias),
            logprobs=given.top_logprobs is not None,
            top_logprobs=given.top_logprobs or 0,
        )
    )
    message.stop[:] = request.stop
    for tool in request.tools:
        message.tools.add(name=tool.name, description=tool.description, parameters=tool.parameters)
    message.tool_choice = request.tool_choice if request.tools else ""
    message.tool_name = request.tool_name
    message.json_schema = request.json_schema
    message.prompt_text = request.prompt_text


def _off(value: float) -> float:
    """1 switches these rules off; on the wire that is 0."""
    return 0.0 if value == 1.0 else value


def _check_turn(turn: pb.Message) -> ChatMessage:
    if turn.role not in ROLES:
        role = turn.role[:MAX_STOP_CHARACTERS]
        raise InvalidRequest(f"role {role!r} is not one of {', '.join(sorted(ROLES))}")
    if len(turn.tool_calls) > MAX_TOOL_CALLS:
        raise InvalidRequest(
            f"{len(turn.tool_calls)} tool calls in a turn, {MAX_TOOL_CALLS} allowed"
        )
    for call in turn.tool_calls:
        _check_name(call.name)
        if len(call.arguments) > MAX_TOOL_CHARACTERS or len(call.id) > MAX_CALL_ID_CHARACTERS:
            raise InvalidRequest(
                f"a tool call allows {MAX_TOOL_CHARACTERS} characters of arguments and"
                f" {MAX_CALL_ID_CHARACTERS} of id"
            )
    if len(turn.tool_call_id) > MAX_CALL_ID_CHARACTERS:
        raise InvalidRequest(f"tool_call_id is longer than {MAX_CALL_ID_CHARACTERS} characters")
    calls = tuple((call.id, call.name, call.arguments) for call in turn.tool_calls)
    return ChatMessage(turn.role, turn.content, calls, turn.tool_call_id)


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(f"tool name {name[:64]!r} is not 1 to 64 of a-z A-Z 0-9 _ -")


def _check_tool(tool: pb.Tool) -> Tool:
    _check_name(tool.name)
    if len(tool.description) > MAX_DESCRIPTION_CHARACTERS:
        raise InvalidRequest(
            f"description of tool {tool.name} is over {MAX_DESCRIPTION_CHARACTERS} characters"
        )
    return Tool(tool.name, tool.description, _check_schema(tool.parameters))


def _check_schema(text: str) -> str:
    if text:
        check_schema(text, "json_schema")
    return text


def _check_tool_choice(message: pb.Generate) -> ToolChoice:
    if len(message.tools) > MAX_TOOLS:
        raise InvalidRequest(f"{len(message.tools)} tools, {MAX_TOOLS} allowed")
    names = {tool.name for tool in message.tools}
    if message.tool_name and message.tool_name not in names:
        raise InvalidRequest(f"tool_name {message.tool_name[:64]!r} is none of the tools")
    for choice in TOOL_CHOICES:
        if message.tool_choice in (choice, "") and (choice != "required" or names):
            return choice
    raise InvalidRequest(f"tool_choice {message.tool_choice[:16]!r} does not fit the tools")


def _check_continue_ids(message: pb.Generate) -> tuple[int, ...]:
    ids = tuple(message.continue_ids)
    if len(ids) > MAX_CONTINUE_IDS or max(ids, default=0) > MAX_TOKEN_ID:
        raise InvalidRequest(
            f"continue_ids allows {MAX_CONTINUE_IDS} ids of at most {MAX_TOKEN_ID}"
        )
    return ids


def _check_sampling(choice: pb.Sampling) -> SamplingChoice:
    if not 0.0 <= choice.temperature <= MAX_TEMPERATURE:
        raise InvalidRequest(f"temperature {choice.temperature} is not in 0 to {MAX_TEMPERATURE}")
    for name, value in (("top_p", choice.top_p), ("min_p", choice.min_p)):
        if not 0.0 <= value <= 1.0:
            raise InvalidRequest(f"{name} {value} is not in 0 to 1")
    if choice.top_k > MAX_TOP_K:
        raise InvalidRequest(f"top_k {choice.top_k} is over {MAX_TOP_K}")
    if choice.seed > MAX_SEED:
        raise InvalidRequest(f"seed {choice.seed} is over {MAX_SEED}")
    _check_penalties(choice)
    if choice.top_logprobs > MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs {choice.top_logprobs} is over {MAX_TOP_LOGPROBS}")
    return SamplingChoice(
        choice.temperature,
        choice.top_p,
        choice.top_k,
        choice.min_p,
        choice.seed,
        typical_p=choice.typical_p,
        repeat_penalty=choice.repeat_penalty,
        frequency_penalty=choice.frequency_penalty,
        presence_penalty=choice.presence_penalty,
        logit_bias=tuple(sorted(choice.logit_bias.items())),
        top_logprobs=choice.top_logprobs if choice.logprobs else None,
    )


def _check_penalties(choice: pb.Sampling) -> None:
    for name, value, lowest, highest in (
        ("typical_p", choice.typical_p, 0, 1),
        ("repeat_penalty", choice.repeat_penalty or 1, MIN_REPEAT_PENALTY, 4),
        ("frequency_penalty", choice.frequency_penalty, -2, 2),
        ("presence_penalty", choice.presence_penalty, -2, 2),
    ):
        if not lowest <= value <= highest:
            raise InvalidRequest(f"{name} {value} is not in {lowest} to {highest}")
    if len(choice.logit_bias) > MAX_LOGIT_BIAS:
        raise InvalidRequest(
            f"logit_bias of {len(choice.logit_bias)} ids, {MAX_LOGIT_BIAS} allowed"
        )
    for token_id, bias in choice.logit_bias.items():
        if token_id > MAX_TOKEN_ID or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(f"logit_bias {bias} of id {token_id} is not in ±{MAX_BIAS}")
