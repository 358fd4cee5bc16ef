"""The bare engine: llama.cpp's low-level greedy loop, nothing of the node. To compare with.

Usage: bare_llama.py MODEL PROMPT TOKENS [--threads N] [--context N] [--raw]
Prints one JSON object: prompt_tokens, tokens, ttft_s (prefill and first choice, model loaded),
tokens_per_s (after the first token, wall), cpu_s_per_token. The prompt is put into ChatML, as
the SmolLM2 template does it, unless --raw. Start it with OMP_WAIT_POLICY and GOMP_SPINCOUNT as
the node's inference process has them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path

import llama_cpp
import numpy as np
import psutil

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
BATCH = 512


def chat_prompt(text: str) -> str:
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )


class Bare:
    """One model, one sequence."""

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        self._silence = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    def tokenise(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(
            self.vocabulary, data, len(data), ids, len(ids), False, True
        )
        return list(ids[:count])

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def next_token(self, ids: list[int]) -> int:
        for begin in range(0, len(ids), BATCH):
            part = ids[begin : begin + BATCH]
            array = (ctypes.c_int32 * len(part))(*part)
            batch = llama_cpp.llama_batch_get_one(array, len(part))
            if llama_cpp.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
        row = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(row, (self.size,))))

    def is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocabulary, token))


def measure(bare: Bare, ids: list[int], tokens: int) -> dict[str, float]:
    """One greedy answer of at most `tokens` tokens."""
    bare.forget()
    begin, cpu = time.perf_counter(), time.process_time()
    token = bare.next_token(ids)
    first = time.perf_counter()
    count = 1
    while count < tokens and not bare.is_end(token):
        token = bare.next_token([token])
        count += 1
    end, cpu = time.perf_counter(), time.process_time() - cpu
    count -= bare.is_end(token)
    return {
        "prompt_tokens": len(ids),
        "tokens": count,
        "ttft_s": round(first - begin, 4),
        "tokens_per_s": round((count - 1) / (end - first), 2) if count > 1 else 0.0,
        "cpu_s_per_token": round(cpu / max(1, count), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("tokens", type=int)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--raw", action="store_true", help="do not put the prompt into ChatML")
    given = parser.parse_args()
    bare = Bare(given.model, threads=given.threads, context=given.context)
    ids = bare.tokenise(given.prompt if given.raw else chat_prompt(given.prompt))
    measure(bare, ids, 2)
    print(json.dumps(measure(bare, ids, given.tokens)))


if __name__ == "__main__":
    main()
