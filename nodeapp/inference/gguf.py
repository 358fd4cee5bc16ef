"""Checks a GGUF header before native code sees the file: every count, length and offset bounded.

Pure Python on a memory map; nothing is copied but what is returned. llama.cpp's own parser is
an attack surface (CVE-2024-23496 and its kin), so a file that fails here is never handed on.
Source: ggml/docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import InvalidRequest, NotFound

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 1 << 20
MAX_ARRAY_ITEMS = 1 << 22
MAX_ITEMS = 1 << 23
"""Of all arrays together: a large file must not keep this reader busy for minutes."""
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 40
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

ARCHITECTURES = frozenset(
    {"llama", "llama4", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3"}
    | {"phi2", "phi3", "mistral3", "smollm3", "granite", "olmo2", "starcoder2", "stablelm"}
    | {"deepseek2", "glm4", "gpt-oss", "command-r", "cohere2", "falcon", "internlm2", "bert"}
)
"""What this node serves; others may load in llama.cpp but were never tried here."""

_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""ggml_type -> (elements, bytes) of one block. Source: ggml/src/ggml-common.h."""

_QUANTISATIONS = (
    {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K"}
    | {11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S"}
    | {17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS"}
    | {23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S"}
    | {29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4"}
)
"""general.file_type -> name. Source: enum llama_ftype."""

_SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
_STRING, _ARRAY, _BOOL, _UINT32 = 8, 9, 7, 4
_ALIGNMENT = "general.alignment"

Scalar = int | float | str


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a checked file says of itself; lengths in tokens, sizes in bytes.

    `block_bytes` are the weights of all transformer blocks, `other_bytes` those outside of them
    (embedding, output); `kv_bytes` is one token's keys and values in one block, f16;
    `embedding_length` is the width of a row between blocks.
    """

    architecture: str
    quantisation: str
    context_length: int
    vocabulary_size: int
    block_count: int
    tensor_count: int
    size_bytes: int
    chat_template: str
    licence: str
    embedding_length: int
    block_bytes: int
    other_bytes: int
    kv_bytes: int


def read_header(path: Path) -> GgufHeader:
    """Check the whole header and return its facts.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: not a GGUF file that this node would load; the message names what.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise InvalidRequest(f"{path.name} is not a GGUF file: shorter than its header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Reader(view, path.name).header()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFound(f"model file {path} does not exist") from error
    except PermissionError as error:
        raise NotFound(f"model file {path} may not be read by this user") from error


class _Reader:
    """A cursor over the map that never reads past its end."""

    def __init__(self, view: mmap.mmap, name: str) -> None:
        self._view = view
        self._size = len(view)
        self._at = 0
        self._name = name
        self._items = 0

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise self._bad("magic is not GGUF")
        version = self._unsigned("I")
        if version not in VERSIONS:
            raise self._bad(f"version {version} is not one of {VERSIONS}")
        tensors = self._count(self._unsigned("Q"), MAX_TENSORS, "tensors")
        keys = self._count(self._unsigned("Q"), MAX_KEYS, "keys")
        values, lengths = self._metadata(keys)
        sizes = self._check_tensors(tensors, self._alignment(values))
        return self._facts(values, lengths, sizes)

    def _facts(
        self, values: Mapping[str, Scalar], lengths: Mapping[str, int], sizes: Mapping[str, int]
    ) -> GgufHeader:
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise self._bad(f"architecture {str(architecture)[:40]!r} is not served")
        vocabulary = lengths.get("tokenizer.ggml.tokens", 0)
        if vocabulary < 2:
            raise self._bad("tokenizer.ggml.tokens is missing")
        file_type = values.get("general.file_type", -1)
        return GgufHeader(
            architecture=architecture,
            quantisation=_QUANTISATIONS.get(int(file_type), "unknown")
            if isinstance(file_type, int)
            else "unknown",
            context_length=self._whole(values, f"{architecture}.context_length", 1 << 24),
            vocabulary_size=vocabulary,
            block_count=self._whole(values, f"{architecture}.block_count", 1024),
            tensor_count=len(sizes),
            size_bytes=self._size,
            chat_template=str(values.get("tokenizer.chat_template", "")),
            licence=str(values.get("general.license", ""))[:64],
            embedding_length=self._width(values, "embedding_length", architecture),
            block_bytes=sum(size for name, size in sizes.items() if name.startswith("blk.")),
            other_bytes=sum(size for name, size in sizes.items() if not name.startswith("blk.")),
            kv_bytes=self._kv_bytes(values, architecture),
        )

    def _kv_bytes(self, values: Mapping[str, Scalar], architecture: str) -> int:
        """Heads that share keys are counted as stored; without the facts, an upper bound."""
        width = self._width(values, "embedding_length", architecture)
        heads = self._width(values, "attention.head_count", architecture) or 1
        stored = self._width(values, "attention.head_count_kv", architecture) or heads
        each = -(-width // heads)
        key = self._width(values, "attention.key_length", architecture) or each
        value = self._width(values, "attention.value_length", architecture) or each
        return 2 * stored * (key + value)

    def _width(self, values: Mapping[str, Scalar], name: str, architecture: str) -> int:
        """A size that not every file states (or states per block); 0 when it does not."""
        key = f"{architecture}.{name}"
        return self._whole(values, key, 1 << 20) if key in values else 0

    def _metadata(self, keys: int) -> tuple[dict[str, Scalar], dict[str, int]]:
        values: dict[str, Scalar] = {}
        lengths: dict[str, int] = {}
        for _ in range(keys):
            key = self._text(MAX_KEY_BYTES, "key")
            if key in values or key in lengths:
                raise self._bad(f"key {key[:60]!r} is there twice")
            kind = self._unsigned("I")
            if key == _ALIGNMENT and kind != _UINT32:
                raise self._bad(f"{key} is of type {kind}")  # llama.cpp asserts that it is not
            if kind == _ARRAY:
                lengths[key] = self._skip_array(key)
            else:
                values[key] = self._scalar(kind, key)
        return values, lengths

    def _scalar(self, kind: int, key: str) -> Scalar:
        if kind == _STRING:
            return self._text(MAX_STRING_BYTES, f"value of {key[:60]!r}")
        code = self._code(kind, key)
        if kind == _BOOL:
            return self._flag(key)
        value: int | float = struct.unpack("<" + code, self._take(struct.calcsize(code)))[0]
        return value

    def _flag(self, key: str) -> int:
        byte = self._take(1)[0]
        if byte > 1:
            raise self._bad(f"key {key[:60]!r} has truth value {byte}")
        return byte

    def _skip_array(self, key: str) -> int:
        kind = self._unsigned("I")
        items = self._count(self._unsigned("Q"), MAX_ARRAY_ITEMS, f"items in {key[:60]!r}")
        self._items = self._count(self._items + items, MAX_ITEMS, "items in all arrays")
        if kind == _ARRAY:
            raise self._bad(f"key {key[:60]!r} is an array of arrays")
        if kind != _STRING:
            self._skip(items * struct.calcsize(self._code(kind, key)))
            return items
        for _ in range(items):
            length = self._unsigned("Q")
            if length > MAX_STRING_BYTES:
                raise self._bad(f"string of {length} bytes in {key[:60]!r}")
            self._skip(length)
        return items

    def _check_tensors(self, tensors: int, alignment: int) -> Mapping[str, int]:
        """Sizes in bytes by name."""
        sizes: dict[str, int] = {}
        extents: list[tuple[int, int, str]] = []
        for _ in range(tensors):
            name = self._text(MAX_TENSOR_NAME_BYTES, "tensor name")
            if name in sizes:
                raise self._bad(f"tensor {name!r} is there twice")
            size = sizes[name] = self._tensor_bytes(name)
            offset = self._unsigned("Q")
            if offset % alignment:
                raise self._bad(f"tensor {name!r} at {offset} is not aligned to {alignment}")
            extents.append((offset, size, name))
        start = -(-self._at // alignment) * alignment
        end = 0
        for offset, size, name in sorted(extents):
            if offset < end:
                raise self._bad(f"tensor {name!r} at {offset} overlaps the one before")
            end = offset + size
            if start + end > self._size:
                raise self._bad(f"tensor {name!r} ends at {start + end}, file at {self._size}")
        return sizes

    def _tensor_bytes(self, name: str) -> int:
        dimensions = self._unsigned("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._bad(f"tensor {name!r} has {dimensions} dimensions")
        shape = [self._unsigned("Q") for _ in range(dimensions)]
        elements = 1
        for length in shape:
            elements *= length
            if length == 0 or elements > MAX_ELEMENTS:
                raise self._bad(f"tensor {name!r} has shape {shape}")
        kind = self._unsigned("I")
        if kind not in _BLOCKS:
            raise self._bad(f"tensor {name!r} has unknown type {kind}")
        block_elements, block_bytes = _BLOCKS[kind]
        if shape[0] % block_elements:
            raise self._bad(f"tensor {name!r} row of {shape[0]} is not whole blocks")
        return elements // block_elements * block_bytes

    def _alignment(self, values: Mapping[str, Scalar]) -> int:
        value = values.get(_ALIGNMENT, DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self._bad(f"{_ALIGNMENT} is {value}")
        return value

    def _whole(self, values: Mapping[str, Scalar], key: str, limit: int) -> int:
        value = values.get(key)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise self._bad(f"{key} is {str(value)[:40]}, want 1 to {limit}")
        return value

    def _code(self, kind: int, key: str) -> str:
        if kind >= len(_SCALARS) or not _SCALARS[kind]:
            raise self._bad(f"key {key[:60]!r} has unknown type {kind}")
        return _SCALARS[kind]

    def _text(self, limit: int, what: str) -> str:
        length = self._unsigned("Q")
        if length > limit:
            raise self._bad(f"{what} of {length} bytes is over {limit}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._bad(f"{what} is not UTF-8") from error

    def _count(self, value: int, limit: int, what: str) -> int:
        if value > limit:
            raise self._bad(f"{value} {what}, limit {limit}")
        return value

    def _unsigned(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self._take(struct.calcsize(code)))[0]
        return value

    def _take(self, length: int) -> bytes:
        start = self._at
        self._skip(length)
        return self._view[start : self._at]

    def _skip(self, length: int) -> None:
        if length > self._size - self._at:
            raise self._bad(f"cut off at byte {self._at}: {length} more wanted")
        self._at += length

    def _bad(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self._name} is not a usable GGUF file: {what}")
