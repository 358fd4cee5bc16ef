"""Composition root of an inference process: settings -> model file -> engine -> routes.

With `--replica N` it is a further one of the same model, on the device of its number; all of them
share what is remembered in the first one's directory.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from nodeapp.core.audit import SandboxFailed
from nodeapp.inference.api import InferenceApi
from nodeapp.inference.embedding import EmbeddingEngine
from nodeapp.inference.gpu import GpuInventory
from nodeapp.inference.gpu_guard import GpuGuard
from nodeapp.inference.host import ModelHost
from nodeapp.inference.llama_embedding import EmbeddingLoad
from nodeapp.inference.loading import LoaderFiles, ModelLoader
from nodeapp.inference.metrics import EmbeddingMetrics, GpuMetrics, InferenceMetrics
from nodeapp.inference.model_choice import ModelChoice
from nodeapp.inference.model_desk import ModelDesk
from nodeapp.inference.model_store import model_store, verdicts_file
from nodeapp.inference.models import ModelFile, check_model
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.inference.openai_backend import OpenAiApi
from nodeapp.security.sandbox import (
    ResourceLimits,
    confine_files,
    give_up_new_privileges,
    limit_resources,
)
from nodeapp.service.audit import audit_root
from nodeapp.service.config import environment_value
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import Shell, run_service
from nodeapp.service.paths import resolve_paths
from nodeapp.service.replicas import (
    FIRST,
    device_of,
    replica_count,
    replica_index,
    replica_process,
)
from nodeapp.service.server import query
from nodeapp.service.settings import InferenceSettings, Settings
from nodeapp.wire.ipc_inference import Gpus

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


class InferenceProcess:
    """The Process of run_service."""

    def __init__(self, shell: Shell, settings: InferenceSettings, gpus: GpuInventory) -> None:
        own = shell.paths.process_state(FIRST)
        index = replica_index(shell.process) or 0
        self._device = device_of(settings, index)
        store = model_store(settings, shell.paths)
        self._gpus = GpuGuard(
            gpus,
            GpuMetrics(shell.metrics),
            shell.clock,
            visible=self._device or environment_value(DEVICES_VARIABLE),
            is_dealt=bool(self._device),
        )
        metrics = InferenceMetrics(shell.metrics)
        loader = ModelLoader(
            settings,
            self._gpus,
            metrics,
            shell.clock,
            store=store,
            files=LoaderFiles(own / "digests.json", verdicts_file(shell.paths)),
            audit=shell.audit,
        )
        self._choice = ModelChoice(settings, store, own / "chosen.json")
        self._host = ModelHost(
            loader,
            remember=self._choice.remember,
            slots=lambda: self._gpus.slots(settings.max_sequences),
        )
        shell.is_serving = lambda: self._host.is_serving
        self._desk = ModelDesk(self._choice, self._host)
        self._api = InferenceApi(self._host)
        # Nobody deals embeddings out: they are asked for on the first one's socket.
        self._embedding_file = embedding_file(settings) if index == 0 else None
        embedding_metrics = EmbeddingMetrics(shell.metrics)
        self._embedder = (
            EmbeddingEngine(
                EmbeddingLoad(self._embedding_file.path, settings.embedding_threads),
                embedding_metrics,
            )
            if self._embedding_file is not None
            else None
        )
        self._digests = own / "digests.json"
        self._openai = OpenAiApi(self._host, self._embedder, shell.clock)

    def routes(self) -> Sequence[web.RouteDef]:
        """See api.py, model_desk.py and openai_backend.py, whose /v1/models/NAME comes last."""
        gpus = web.get("/v1/gpus", query(self._answering))
        return [*self._api.routes(), gpus, *self._desk.routes(), *self._openai.routes()]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Check the file, load it, watch the decode thread."""
        if self._embedder is not None and self._embedding_file is not None:
            await asyncio.to_thread(check_model, self._embedding_file, self._digests)
            await self._embedder.start()
        await self._host.start(await asyncio.to_thread(self._choice.first))
        tasks.create_task(self._host.run())
        tasks.create_task(self._gpus.run(self._host.quarantine))

    async def _answering(self) -> Gpus:
        return Gpus(await self._gpus.answering())

    def readiness(self) -> str:
        """What is served or happens."""
        device = f"on gpu {self._device}" if self._device else ""
        return "; ".join(filter(None, (self._host.state.detail, device, self._gpus.text)))

    async def drain(self) -> None:
        """Finish the open requests."""
        await self._host.drain()

    async def stop(self) -> None:
        """End thread and template child, free the model."""
        await self._host.stop()
        if self._embedder is not None:
            await self._embedder.stop()


def embedding_file(settings: InferenceSettings) -> ModelFile | None:
    """The embedding model to serve beside the chat model; None: not configured."""
    if not settings.embedding_model_path:
        return None
    path = Path(settings.embedding_model_path)
    return ModelFile(path, settings.embedding_model_sha256, path.stem, path.name)


def give_up_what_is_not_needed(settings: Settings, process: str = FIRST) -> bool:
    """Write only here, connect nowhere, gain nothing: for when a model takes the process over.

    Reading stays open: drivers and libraries lie in places that nobody can list beforehand.

    Returns:
        False: the kernel has no Landlock, and files and connections are as free as before.
    """
    paths = resolve_paths(settings.node)
    store = model_store(settings.inference, paths)
    verdicts = verdicts_file(paths).parent
    own = paths.process_state(FIRST)
    audit = audit_root(paths.state) / process
    for directory in (paths.run, own, paths.process_state(process), store.root, verdicts, audit):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    limit_resources(ResourceLimits())
    give_up_new_privileges()
    devices = (Path("/dev"), Path("/proc"))
    writable = (paths.run, own, store.root, verdicts, audit, *devices)
    return confine_files(readable=None, writable=writable)


def pin_threads() -> None:
    """Have libgomp bind its threads; it reads this when llama.cpp is loaded, later than here."""
    os.putenv("OMP_PROC_BIND", "true")
    os.putenv("OMP_PLACES", "cores")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    index = 0
    if "--replica" in given[:-1]:
        place = given.index("--replica")
        index = int(given[place + 1])
        del given[place : place + 2]
    settings = settings_from_arguments(given)
    process = replica_process(index)
    is_confined = give_up_what_is_not_needed(settings, process)
    if settings.inference.pin_threads and replica_count(settings.inference) == 1:
        pin_threads()
    if device_of(settings.inference, index):
        # CUDA reads it when llama.cpp is loaded, later than here.
        os.putenv(DEVICES_VARIABLE, device_of(settings.inference, index))

    def build(shell: Shell) -> InferenceProcess:
        if not is_confined:
            shell.audit.record(SandboxFailed("this process", "the kernel has no Landlock"))
        return InferenceProcess(shell, settings.inference, NvmlInventory())

    return run_service(process, settings.node, build, settings.inference)


if __name__ == "__main__":
    sys.exit(main())
