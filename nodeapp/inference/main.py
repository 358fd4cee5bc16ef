"""Composition root of the inference process: settings -> model file -> engine -> routes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from aiohttp import web

from nodeapp.core.errors import Corrupt
from nodeapp.core.model_card import ModelCard
from nodeapp.inference.api import InferenceApi
from nodeapp.inference.engine import Engine, EngineOptions
from nodeapp.inference.gguf import read_header
from nodeapp.inference.gpu import GpuInventory, layers_that_fit
from nodeapp.inference.llama import LoadOptions
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.models import ModelFile, check_model
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import Shell, run_service
from nodeapp.service.settings import InferenceSettings

_KV_BYTES_PER_TOKEN_AND_BLOCK = 4096
"""Upper guess for placement only: f16 keys and values of 1024 dimensions each."""


class InferenceProcess:
    """The Process of run_service."""

    def __init__(self, shell: Shell, settings: InferenceSettings, gpus: GpuInventory) -> None:
        self._shell = shell
        self._settings = settings
        self._gpus = gpus
        self._api = InferenceApi()
        self._engine: Engine | None = None
        self._line = "loading the model"

    def routes(self) -> Sequence[web.RouteDef]:
        """See api.py."""
        return self._api.routes()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Check the file, load it, watch the decode thread."""
        settings = self._settings
        digests = self._shell.paths.process_state("inference") / "digests.json"
        model = ModelFile(
            Path(settings.model_path),
            settings.model_sha256,
            settings.model_repo,
            settings.model_file,
        )
        card = await asyncio.to_thread(check_model, model, digests)
        load = await asyncio.to_thread(self._load_options, model.path)
        engine = Engine(card, load, engine_options(settings), clock=self._shell.clock)
        self._engine = engine
        await engine.start(InferenceMetrics(self._shell.metrics))
        self._api.serve(card, engine)
        self._line = _describe(card, engine, load)
        tasks.create_task(self._watch(engine))

    def readiness(self) -> str:
        """What is served."""
        return self._line

    async def drain(self) -> None:
        """Finish the open requests."""
        if self._engine is not None:
            await self._engine.wait_idle()

    async def stop(self) -> None:
        """End thread and template child, free the model."""
        if self._engine is not None:
            await self._engine.stop()

    async def _watch(self, engine: Engine) -> None:
        failure = await engine.wait_failed()
        if failure:
            raise Corrupt(f"engine: {failure}")

    def _load_options(self, path: Path) -> LoadOptions:
        settings = self._settings
        header = read_header(path)
        kv_tokens = settings.kv_tokens or 2 * settings.context_length
        kv_bytes = kv_tokens * header.block_count * _KV_BYTES_PER_TOKEN_AND_BLOCK
        layers = layers_that_fit(
            settings.gpu_layers,
            blocks=header.block_count,
            model_bytes=header.size_bytes,
            kv_bytes=kv_bytes,
            gpus=self._gpus.devices(),
        )
        return LoadOptions(
            path=path,
            kv_tokens=kv_tokens,
            sequences=2 * settings.max_sequences,
            batch_tokens=settings.prefill_chunk_tokens + settings.max_sequences,
            threads=settings.threads or physical_cores(),
            decode_threads=settings.threads or decode_cores(),
            gpu_layers=layers,
        )


def engine_options(settings: InferenceSettings) -> EngineOptions:
    """The engine's share of the settings."""
    return EngineOptions(
        context_length=settings.context_length,
        max_sequences=settings.max_sequences,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        queue_requests=settings.queue_requests,
        slow_reader_seconds=settings.slow_reader_seconds,
    )


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted, >= 1."""
    usable = len(psutil.Process().cpu_affinity())
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def decode_cores() -> int:
    """One core is left to the processes that carry the tokens away.

    Threads that wait for each other some 500 times a token are all stopped by what stops one: on
    two cores one thread gives 70 tokens/s alone and beside other work, two give 75 and 45 (135M
    model).
    """
    return max(1, physical_cores() - 1)


def _describe(card: ModelCard, engine: Engine, load: LoadOptions) -> str:
    return (
        f"{card.file_name} {card.quantisation}, context {engine.context_length}, "
        f"{load.threads} threads, {load.gpu_layers} layers on GPU"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    settings = settings_from_arguments(given)

    def build(shell: Shell) -> InferenceProcess:
        return InferenceProcess(shell, settings.inference, NvmlInventory())

    return run_service("inference", settings.node, build)


if __name__ == "__main__":
    sys.exit(main())
