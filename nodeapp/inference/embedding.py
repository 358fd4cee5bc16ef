"""Embedding engine: texts in, unit vectors out; calls take turns on one thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from nodeapp.core.errors import Busy, InvalidRequest, TooLarge, Unavailable
from nodeapp.inference.llama_embedding import EmbeddingLoad, EmbeddingModel
from nodeapp.inference.metrics import EmbeddingMetrics

MAX_WAITING = 32
_BUSY_RETRY_SECONDS = 1.0


class EmbeddingEngine:
    """Start it, ask `embed` any number of times, stop it."""

    def __init__(self, load: EmbeddingLoad, metrics: EmbeddingMetrics) -> None:
        self._load = load
        self._metrics = metrics
        self._model: EmbeddingModel | None = None
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    @property
    def model_name(self) -> str:
        """File name of its model."""
        return self._load.path.name

    async def start(self) -> None:
        """Load the model.

        Raises:
            InvalidRequest: llama.cpp refuses the file.
            Unavailable: not enough memory.
        """
        loop = asyncio.get_running_loop()
        self._model = await loop.run_in_executor(self._thread, EmbeddingModel, self._load)

    async def stop(self) -> None:
        """Finish the running call, free the model. Safe before start()."""
        model, self._model = self._model, None
        loop = asyncio.get_running_loop()
        if model is not None:
            await loop.run_in_executor(self._thread, model.close)
        self._thread.shutdown(wait=False)

    async def embed(
        self, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None
    ) -> tuple[list[list[float]], int]:
        """Unit vectors in order, and how many tokens were read.

        Args:
            inputs: texts, or token ids.
            dimensions: only so many of each vector's, made unit length again.

        Raises:
            InvalidRequest: more dimensions than there are, an id outside the vocabulary.
            TooLarge: a text over the model's context.
            Busy: too many calls wait.
            Unavailable: not started, or stopped.
        """
        model = self._model
        if model is None:
            raise Unavailable("the embedding model is not loaded", retry_after_seconds=1.0)
        if dimensions is not None and dimensions > model.dimensions:
            raise InvalidRequest(
                f"{dimensions} dimensions asked, the model has {model.dimensions}",
                param="dimensions",
            )
        if self._waiting >= MAX_WAITING:
            raise Busy(
                f"{self._waiting} embedding calls wait", retry_after_seconds=_BUSY_RETRY_SECONDS
            )
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._thread, self._embed, model, tuple(inputs), dimensions
            )
        finally:
            self._waiting -= 1

    def _embed(
        self,
        model: EmbeddingModel,
        inputs: Sequence[str | tuple[int, ...]],
        dimensions: int | None,
    ) -> tuple[list[list[float]], int]:
        texts = [_token_ids(model, given) for given in inputs]
        count = sum(map(len, texts))
        vectors = [_unit(vector[:dimensions]).tolist() for vector in model.embed(texts)]
        self._metrics.tokens.inc(count)
        self._metrics.vectors.inc(len(vectors))
        return vectors, count


def _token_ids(model: EmbeddingModel, given: str | tuple[int, ...]) -> Sequence[int]:
    if isinstance(given, str):
        try:
            ids: Sequence[int] = model.tokenise(given)
        except UnicodeEncodeError as error:
            raise InvalidRequest("an input has a lone surrogate", param="input") from error
    else:
        ids = given
    if len(ids) > model.max_tokens:
        raise TooLarge(f"an input has {len(ids)} tokens, limit {model.max_tokens}", param="input")
    if max(ids, default=0) >= model.vocabulary_size:
        raise InvalidRequest(
            f"token id {max(ids)} is not below the vocabulary's {model.vocabulary_size}",
            param="input",
        )
    return ids


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector
