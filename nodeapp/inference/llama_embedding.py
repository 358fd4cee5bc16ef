"""Thin typed adapter over llama.cpp for embedding models; llama.py is the one for chat models.

One thread calls `embed`. Texts are tokenised without parsing control texts. `n_threads_batch` is
set as well as `n_threads`: left alone it takes every core, and a sentence costs ten times as much.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nodeapp.core.errors import Corrupt, InvalidRequest, Unavailable
from nodeapp.inference.llama_log import error_log

BATCH_TOKENS = 2048
MAX_SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class EmbeddingLoad:
    """How to load; `threads` >= 1."""

    path: Path
    threads: int
    gpu_layers: int = 0


class EmbeddingModel:
    """One loaded model with one context, pooled as its file says."""

    def __init__(self, load: EmbeddingLoad) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        log = error_log()
        log.forget()
        self._api.llama_backend_init()
        self._context: Any = None
        self._model: Any = None
        parameters = self._api.llama_model_default_params()
        parameters.n_gpu_layers = load.gpu_layers
        model = self._api.llama_model_load_from_file(str(load.path).encode(), parameters)
        if not model:
            raise InvalidRequest(f"llama.cpp refuses {load.path.name}: {log.text}")
        self._model = model
        self.max_tokens: int = min(BATCH_TOKENS, self._api.llama_model_n_ctx_train(model))
        """Of one text; a text is computed in one batch."""
        self.dimensions: int = self._api.llama_model_n_embd(model)
        self._vocabulary: Any = self._api.llama_model_get_vocab(model)
        self.vocabulary_size: int = self._api.llama_vocab_n_tokens(self._vocabulary)
        self._context = self._new_context(load.threads)
        self._batch: Any = self._api.llama_batch_init(BATCH_TOKENS, 0, 1)

    def tokenise(self, text: str) -> list[int]:
        """Ids with the model's begin and end tokens."""
        data = text.encode()
        capacity = len(data) + 8
        ids = (ctypes.c_int32 * capacity)()
        add_special, parse_special = True, False
        count: int = self._api.llama_tokenize(
            self._vocabulary, data, len(data), ids, capacity, add_special, parse_special
        )
        if count < 0:
            raise InvalidRequest(f"text of {len(data)} bytes cannot be tokenised", param="input")
        return list(ids[:count])

    def embed(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Pooled vectors, not normalised, in order.

        Args:
            texts: token ids, each at most `max_tokens` long.

        Returns:
            One (dimensions,) float32 array for each text.

        Raises:
            Corrupt: the backend failed.
        """
        vectors: list[NDArray[np.float32]] = []
        group: list[Sequence[int]] = []
        size = 0
        for ids in texts:
            if group and (size + len(ids) > BATCH_TOKENS or len(group) == MAX_SEQUENCES):
                vectors += self._compute(group)
                group, size = [], 0
            group.append(ids)
            size += len(ids)
        return vectors + (self._compute(group) if group else [])

    def close(self) -> None:
        """Free context and model; nothing may be called afterwards."""
        if self._context is not None:
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
        if self._model is not None:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def _new_context(self, threads: int) -> Any:  # noqa: ANN401  # llama_cpp has no stubs
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = MAX_SEQUENCES
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.embeddings = True
        parameters.kv_unified = True
        parameters.no_perf = True
        context = self._api.llama_init_from_model(self._model, parameters)
        if not context:
            self.close()
            raise Unavailable("no context for the embedding model: not enough memory")
        return context

    def _compute(self, group: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        batch, at = self._batch, 0
        for sequence, ids in enumerate(group):
            for position, token_id in enumerate(ids):
                batch.token[at] = token_id
                batch.pos[at] = position
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = True
                at += 1
        batch.n_tokens = at
        memory = self._api.llama_get_memory(self._context)
        if memory:  # a decoder that embeds has a cache; an encoder has none
            clear_data = True
            self._api.llama_memory_clear(memory, clear_data)
        code: int = self._api.llama_decode(self._context, batch)
        if code != 0:
            raise Corrupt(f"llama_decode of {at} tokens to embed returned {code}")
        return [self._vector(sequence) for sequence in range(len(group))]

    def _vector(self, sequence: int) -> NDArray[np.float32]:
        pointer = self._api.llama_get_embeddings_seq(self._context, sequence)
        if not pointer:
            raise Corrupt("the embedding model pools nothing: its file names no pooling")
        return np.ctypeslib.as_array(pointer, (self.dimensions,)).copy()
