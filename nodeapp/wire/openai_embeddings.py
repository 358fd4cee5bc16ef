"""POST /v1/embeddings and the batch of requests: bodies in, bodies out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from nodeapp.core.errors import InvalidRequest, NodeError
from nodeapp.wire import openai
from nodeapp.wire.openai_requests import Text, TokenIdField, TokenList

MAX_INPUTS = 256
MAX_BATCH = 64


class EmbeddingsRequest(openai.ApiRequest, frozen=True, kw_only=True):
    """POST /v1/embeddings; `dimensions` cuts the vectors and makes them unit length again."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    input: (
        Text
        | Annotated[
            tuple[Text | TokenIdField | TokenList, ...],
            msgspec.Meta(min_length=1, max_length=1 << 16),
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None

    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """One entry for each vector wanted.

        Raises:
            InvalidRequest: empty, too many, or kinds mixed.
        """
        given = self.input
        if isinstance(given, str):
            return self._checked((given,))
        numbers = tuple(entry for entry in given if isinstance(entry, int))
        if numbers and len(numbers) != len(given):
            raise InvalidRequest("input mixes token ids and texts", param="input")
        rest = tuple(entry for entry in given if not isinstance(entry, int))
        return self._checked((numbers,) if numbers else rest)

    @staticmethod
    def _checked(
        inputs: tuple[str | tuple[int, ...], ...],
    ) -> tuple[str | tuple[int, ...], ...]:
        if len(inputs) > MAX_INPUTS:
            raise InvalidRequest(f"{len(inputs)} inputs, limit {MAX_INPUTS}", param="input")
        if not all(inputs):
            raise InvalidRequest("an input is empty", param="input")
        return inputs


def embeddings_body(
    request: EmbeddingsRequest, vectors: Sequence[Sequence[float]], prompt_tokens: int
) -> bytes:
    """The vectors in order; base64 is of little-endian float32."""
    is_packed = request.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed(vector) if is_packed else list(vector),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return msgspec.json.encode(
        {"object": "list", "data": data, "model": request.model, "usage": usage}
    )


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class BatchItem(msgspec.Struct, frozen=True):
    """One request of a batch, as a line of OpenAI's batch files has it."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    body: msgspec.Raw
    method: Literal["POST"] = "POST"


class BatchRequest(openai.ApiRequest, frozen=True, kw_only=True):
    """POST /v1/batch: many requests in one call, each with its own result."""

    requests: Annotated[tuple[BatchItem, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


def batch_result(item: BatchItem, request_id: str, status: int, body: bytes) -> dict[str, object]:
    """One entry of the answer; a refusal is its error object with its status."""
    return {
        "custom_id": item.custom_id,
        "response": {
            "status_code": status,
            "request_id": request_id,
            "body": msgspec.Raw(body),
        },
    }


def batch_refusal(item: BatchItem, request_id: str, error: NodeError) -> dict[str, object]:
    """The entry of a request that was refused."""
    return batch_result(item, request_id, openai.error_status(error), openai.error_body(error))


def batch_body(results: Sequence[dict[str, object]]) -> bytes:
    """All entries in the order of the requests."""
    return msgspec.json.encode({"object": "list", "data": results})


class TokeniseRequest(openai.ApiRequest, frozen=True, kw_only=True):
    """POST /tokenize, as llama-server has it."""

    content: Text
    add_special: bool = False


class DetokeniseRequest(openai.ApiRequest, frozen=True, kw_only=True):
    """POST /detokenize, as llama-server has it."""

    tokens: Annotated[tuple[TokenIdField, ...], msgspec.Meta(max_length=1 << 20)]
