"""The renter's wire: varint-framed protobuf envelopes, decoded and bounded once, here.

Source of the messages: fabstir.proto beside this file (regenerate with `make proto`).
"""

from __future__ import annotations

from dataclasses import dataclass

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

INFERENCE_PROTOCOL = "/fabstir/inference/1.0.0"
CAPABILITY_PROTOCOL = "/fabstir/caps/1.0.0"
PROTOCOL_VERSION = 1
MAX_REQUEST_FRAME_BYTES = 1 << 20
MAX_STREAM_FRAME_BYTES = 64 << 10
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
ROLES = frozenset({"system", "user", "assistant"})
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """How the renter wants tokens chosen; 0 switches a rule off, temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int


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
    if not 1 <= len(message.messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"{len(message.messages)} messages, 1 to {MAX_MESSAGES} allowed")
    for turn in message.messages:
        if turn.role not in ROLES:
            role = turn.role[:MAX_STOP_CHARACTERS]
            raise InvalidRequest(f"role {role!r} is not one of {', '.join(sorted(ROLES))}")
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
        messages=tuple(ChatMessage(turn.role, turn.content) for turn in message.messages),
        max_tokens=message.max_tokens,
        sampling=_check_sampling(message.sampling),
        stop=tuple(message.stop),
        continue_ids=_check_continue_ids(message),
    )


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
    return SamplingChoice(choice.temperature, choice.top_p, choice.top_k, choice.min_p, choice.seed)
