"""Composition root of the inference process: settings -> model file -> engine -> routes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from nodeapp.inference.api import InferenceApi
from nodeapp.inference.gpu import GpuInventory
from nodeapp.inference.host import ModelHost
from nodeapp.inference.loading import ModelLoader
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.models import ModelFile
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import Shell, run_service
from nodeapp.service.settings import InferenceSettings


class InferenceProcess:
    """The Process of run_service."""

    def __init__(self, shell: Shell, settings: InferenceSettings, gpus: GpuInventory) -> None:
        self._settings = settings
        loader = ModelLoader(
            settings,
            gpus,
            InferenceMetrics(shell.metrics),
            shell.clock,
            digests=shell.paths.process_state("inference") / "digests.json",
        )
        self._host = ModelHost(loader)
        self._api = InferenceApi(self._host)

    def routes(self) -> Sequence[web.RouteDef]:
        """See api.py."""
        return self._api.routes()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Check the file, load it, watch the decode thread."""
        settings = self._settings
        model = ModelFile(
            Path(settings.model_path),
            settings.model_sha256,
            settings.model_repo,
            settings.model_file,
        )
        await self._host.start(model)
        tasks.create_task(self._host.run())

    def readiness(self) -> str:
        """What is served or happens."""
        return self._host.state.detail

    async def drain(self) -> None:
        """Finish the open requests."""
        await self._host.drain()

    async def stop(self) -> None:
        """End thread and template child, free the model."""
        await self._host.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    settings = settings_from_arguments(given)

    def build(shell: Shell) -> InferenceProcess:
        return InferenceProcess(shell, settings.inference, NvmlInventory())

    return run_service("inference", settings.node, build)


if __name__ == "__main__":
    sys.exit(main())
