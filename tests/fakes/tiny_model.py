"""A real llama model of some kilobytes with random weights: loads and decodes in milliseconds."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from tests.fakes import gguf_file as gf

WIDTH, HIDDEN, HEADS, CONTEXT = 32, 64, 2, 512
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [byte for byte in range(256) if byte not in plain]
    mapped = {byte: chr(byte) for byte in plain}
    mapped |= {byte: chr(256 + place) for place, byte in enumerate(odd)}
    return [mapped[byte] for byte in range(256)]


TOKENS = [*byte_tokens(), "<|im_start|>", "<|im_end|>"]


def float32(name: str, value: float) -> bytes:
    return gf.key(name, gf.FLOAT32, struct.pack("<f", value))


def int32s(name: str, values: Sequence[int]) -> bytes:
    body = struct.pack("<IQ", 5, len(values)) + struct.pack(f"<{len(values)}i", *values)
    return gf.key(name, gf.ARRAY, body)


def tiny_model(*, seed: int = 1, template: str = CHATML, **changes: bytes) -> bytes:
    """The whole file; `changes` replace keys by the last part of their name, dots as __."""
    keys = {
        "architecture": gf.string("general.architecture", "llama"),
        "name": gf.string("general.name", f"tiny {seed}"),
        "license": gf.string("general.license", "mit"),
        "file_type": gf.u32("general.file_type", 0),
        "context_length": gf.u32("llama.context_length", CONTEXT),
        "embedding_length": gf.u32("llama.embedding_length", WIDTH),
        "block_count": gf.u32("llama.block_count", 1),
        "feed_forward_length": gf.u32("llama.feed_forward_length", HIDDEN),
        "head_count": gf.u32("llama.attention.head_count", HEADS),
        "epsilon": float32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        "model": gf.string("tokenizer.ggml.model", "gpt2"),
        "pre": gf.string("tokenizer.ggml.pre", "smollm"),
        "tokens": gf.strings("tokenizer.ggml.tokens", TOKENS),
        "token_type": int32s("tokenizer.ggml.token_type", [1] * 256 + [3, 3]),
        "merges": gf.strings("tokenizer.ggml.merges", ("a b",)),
        "eos": gf.u32("tokenizer.ggml.eos_token_id", 257),
        "template": gf.string("tokenizer.chat_template", template),
    }
    keys |= changes
    shapes = {
        "token_embd.weight": (WIDTH, len(TOKENS)),
        "output_norm.weight": (WIDTH,),
        "output.weight": (WIDTH, len(TOKENS)),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH, WIDTH),
        "blk.0.attn_v.weight": (WIDTH, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.ffn_gate.weight": (WIDTH, HIDDEN),
        "blk.0.ffn_up.weight": (WIDTH, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, WIDTH),
    }
    chosen = random.Random(seed)
    tensors, body = [], b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append(gf.tensor(name, shape, 0, len(body)))
        body += struct.pack(f"<{count}f", *(chosen.uniform(-0.5, 0.5) for _ in range(count)))
    return gf.gguf(keys=tuple(keys.values()), tensors=tensors, data_bytes=0) + body
