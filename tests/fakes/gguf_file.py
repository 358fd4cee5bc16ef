"""Writes small GGUF files, whole or broken in one place."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, U32, FLOAT32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def u32(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def string(name: str, value: str) -> bytes:
    return key(name, STRING, text(value))


def strings(name: str, values: Sequence[str]) -> bytes:
    body = struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values)
    return key(name, ARRAY, body)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


DEFAULT_KEYS = (
    string("general.architecture", "llama"),
    u32("general.file_type", 3),
    u32("llama.context_length", 512),
    u32("llama.block_count", 2),
    string("tokenizer.chat_template", "{{ messages[0].content }}"),
    strings("tokenizer.ggml.tokens", ("<s>", "</s>", "a")),
)
DEFAULT_TENSORS = (tensor("a", (32, 2), 0, 0), tensor("b", (32,), 3, 256))
DATA_BYTES = 256 + 20


def gguf(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: Sequence[bytes] = DEFAULT_KEYS,
    tensors: Sequence[bytes] = DEFAULT_TENSORS,
    key_count: int | None = None,
    tensor_count: int | None = None,
    data_bytes: int = DATA_BYTES,
    alignment: int = 32,
) -> bytes:
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    body = head + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % alignment) + bytes(data_bytes)
