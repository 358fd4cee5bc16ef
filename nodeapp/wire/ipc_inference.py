"""Messages of the inference process: one request, a stream of events, the list of models."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.wire.ipc import Message

MAX_MESSAGES = 1024
MAX_TEXT_CHARACTERS = 1 << 20
MAX_TOKEN_IDS = 1 << 20
MAX_STOP_STRINGS = 8
MAX_STOP_CHARACTERS = 128
MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
MAX_TOOL_CHARACTERS = 1 << 16
MAX_SCHEMA_CHARACTERS = 1 << 16
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MIN_REPEAT_PENALTY = 0.01
"""Dividing logits by less overflows, which looks like a broken model."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
TokenIdField = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
TokenIds = Annotated[tuple[TokenIdField, ...], msgspec.Meta(max_length=MAX_TOKEN_IDS)]
StopString = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]

FinishReason = Literal["stop", "length", "cancelled", "error"]


ToolName = Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class ToolCall(Message, frozen=True):
    """A call the model made in an earlier turn; `arguments` is a JSON object as text."""

    call_id: Annotated[str, msgspec.Meta(max_length=128)]
    name: ToolName
    arguments: Annotated[str, msgspec.Meta(max_length=MAX_TOOL_CHARACTERS)]


class ChatMessage(Message, frozen=True):
    """One turn of a conversation; `tool_call_id` is of a tool's answer."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    tool_calls: Annotated[tuple[ToolCall, ...], msgspec.Meta(max_length=MAX_TOOL_CALLS)] = ()
    tool_call_id: Annotated[str, msgspec.Meta(max_length=128)] = ""


class Tool(Message, frozen=True):
    """A function the model may call; `parameters` is a JSON schema as text, "" for none."""

    name: ToolName
    description: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    parameters: Annotated[str, msgspec.Meta(max_length=MAX_TOOL_CHARACTERS)] = ""


class Sampling(Message, frozen=True):
    """How a token is chosen; temperature 0 is greedy. msgspec's bounds refuse NaN too."""

    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=4.0)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """0: off."""
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    """Same seed, same prompt: same answer, also when resumed."""
    typical_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    repeat_penalty: Annotated[float, msgspec.Meta(ge=MIN_REPEAT_PENALTY, le=4.0)] = 1.0
    """Divides positive and multiplies negative logits of the last tokens; 1: off."""
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] = 0.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] = 0.0
    penalty_last_n: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 64
    """Tokens the repeat penalty looks back on, prompt included; 0: all. The other two count the
    answer's tokens, as OpenAI defines them."""
    logit_bias: Annotated[
        tuple[tuple[TokenIdField, Annotated[float, msgspec.Meta(ge=-100.0, le=100.0)]], ...],
        msgspec.Meta(max_length=MAX_LOGIT_BIAS),
    ] = ()
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """None: no logprobs; else the chosen token's and those of so many best ones."""
    has_fingerprints: bool = False
    """Send a Fingerprint with every token."""


class GenerateRequest(Message, frozen=True):
    """Answer `messages`, or continue `prompt_token_ids` or `prompt_text`: one of the three.

    `continue_token_ids` were delivered in an earlier life of this request: generation goes on
    after them, and `max_tokens` counts only what is still to come. `cache_scope` names who may
    share this request's prefix in the KV cache (one renter); "" shares with nobody. `renter` is who
    takes turns with the others for sequences and prefill, `weight` how large the turns are.
    """

    request_id: Name
    model_id: Annotated[str, msgspec.Meta(max_length=66)] = ""
    """"": whatever model is loaded."""
    messages: Annotated[tuple[ChatMessage, ...], msgspec.Meta(max_length=MAX_MESSAGES)] = ()
    prompt_token_ids: TokenIds = ()
    continue_token_ids: TokenIds = ()
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 512
    sampling: Sampling = Sampling()
    stop: Annotated[tuple[StopString, ...], msgspec.Meta(max_length=MAX_STOP_STRINGS)] = ()
    cache_scope: Annotated[str, msgspec.Meta(max_length=128)] = ""
    renter: Annotated[str, msgspec.Meta(max_length=128)] = ""
    weight: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    prompt_text: Text = ""
    tools: Annotated[tuple[Tool, ...], msgspec.Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """With "required": the one tool to call; "": any of them."""
    json_schema: Annotated[str, msgspec.Meta(max_length=MAX_SCHEMA_CHARACTERS)] = ""
    """The answer is a JSON value of this schema (JSON as text); "": no rule."""

    def check_unicode(self) -> None:
        """A lone surrogate has no UTF-8 form, so the message could not be sent at all.

        Raises:
            InvalidRequest: one is in a text.
        """
        for text in (self.prompt_text, *(message.content for message in self.messages)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"message text has a lone surrogate at character {error.start}"
                ) from error


class Started(Message, frozen=True, tag="started"):
    """First event: the prompt was accepted. Token counts; continued tokens are not in them."""

    prompt_tokens: int
    context_length: int


class Alternative(Message, frozen=True, array_like=True):
    """A token, its bytes, and the logarithm of its probability before temperature."""

    token_id: TokenIdField
    piece: bytes
    logprob: float


class TokenLogprob(Message, frozen=True, array_like=True):
    """The chosen token and the most probable ones, best first."""

    chosen: Alternative
    top: tuple[Alternative, ...] = ()


class Fingerprint(Message, frozen=True, array_like=True):
    """The highest logits at one token, highest first; logits in 1/256, fixed point.

    Another machine that reads the same tokens with the same model computes nearly the same.
    """

    token_ids: tuple[TokenIdField, ...]
    logits: tuple[int, ...]


class Produced(Message, frozen=True, tag="produced"):
    """Tokens and exactly the text they stand for; the end-of-generation token is never here."""

    token_ids: TokenIds
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token when `Sampling.top_logprobs` was given."""
    fingerprints: tuple[Fingerprint, ...] = ()
    """One per token when `Sampling.has_fingerprints` was set."""


class Finished(Message, frozen=True, tag="finished"):
    """Last event; `completion_tokens` counts the ids of this stream's Produced events."""

    reason: FinishReason
    completion_tokens: int
    detail: str = ""
    cached_tokens: int = 0
    """Tokens of the prompt that were taken from the KV cache."""
    prompt_tokens: int = 0
    """Set where it is known at the end only, as on the renter's side."""


Event = Started | Produced | Finished


class ModelFacts(Message, frozen=True):
    """A model this process serves. Lengths in tokens; `context_length` is the limit enforced."""

    model_id: str
    repo: str
    file_name: str
    sha256: str
    size_bytes: int
    architecture: str
    quantisation: str
    context_length: int
    trained_context_length: int
    vocabulary_size: int
    end_token_ids: tuple[int, ...] = ()


class Models(Message, frozen=True):
    """Answer of /v1/models."""

    models: tuple[ModelFacts, ...]


ModelPhase = Literal["none", "checking", "draining", "loading", "serving"]


class UseModel(Message, frozen=True):
    """Serve a model of the catalogue instead of the one that is loaded; "": the configured one."""

    name: Annotated[str, msgspec.Meta(max_length=64)]


class ModelState(Message, frozen=True):
    """What is served or happens; `error` is why the last change asked for was not made.

    `slots`: requests answered at once now, 0 when none are; hot or faulty GPUs lower it.
    """

    name: str
    phase: ModelPhase
    detail: str
    error: str = ""
    slots: int = 0


class Gpus(Message, frozen=True):
    """Answer of /v1/gpus: those that the driver answers for, faulty ones not counted."""

    answering: int
