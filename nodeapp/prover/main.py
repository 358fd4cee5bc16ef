"""The prover process: composition root.

python -m nodeapp.prover.main [--config FILE] [--set section.key=value …]
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from aiohttp import web

from nodeapp.core.errors import Unavailable
from nodeapp.prover import EZKL_MISSING
from nodeapp.prover.api import ProverApi
from nodeapp.prover.intervals import IntervalProver
from nodeapp.prover.keys import keys_place, open_keys
from nodeapp.prover.proof_store import ProofStore
from nodeapp.prover.queue import ProofQueue
from nodeapp.rpc.proof_worker import WorkerSettings, run_worker
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import Shell, run_service
from nodeapp.service.logs import get_logger
from nodeapp.service.settings import ProverSettings
from nodeapp.wire import prover_job
from nodeapp.wire.ipc_prover import ProfileReply

_log = get_logger(__name__)


class ProverProcess:
    """Profile, store, queue and worker put together."""

    def __init__(self, shell: Shell, settings: ProverSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._api = ProverApi()
        self._detail = "opening the proof profile"
        self._scratch = shell.paths.run / "prover-work"
        self._chunks = shell.metrics.counter("chunks_total", "chunks by outcome", ("outcome",))
        self._cpu = shell.metrics.counter("proof_cpu_seconds_total", "CPU spent on proofs")
        self._wall = shell.metrics.histogram("proof_wall_seconds", "wall time of one proof")
        self._depth = shell.metrics.gauge("queue_intervals", "intervals waiting or being proven")

    def routes(self) -> Sequence[web.RouteDef]:
        """The API."""
        return self._api.routes()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open or make the profile, then serve the queue."""
        if find_spec("ezkl") is None:
            raise Unavailable(EZKL_MISSING)
        await asyncio.to_thread(self._clear_scratch)
        directory = keys_place(self._settings, self._shell.paths.cache)
        self._detail = f"opening the proof keys in {directory}"
        manifest = await open_keys(self._settings, self._shell.paths.cache, report=self._report)
        profile = ProfileReply(
            profile_id=manifest.profile_id,
            profile=manifest.profile,
            ezkl=manifest.ezkl,
            srs_kind=manifest.srs,
            srs_sha256=manifest.srs_sha256,
            vk_sha256=manifest.vk_sha256,
        )
        intervals = IntervalProver(
            profile=profile,
            directory=str(directory),
            store=ProofStore(self._shell.paths.process_state("prover") / "proofs"),
            worker=self._work,
            note=self._note,
        )
        queue = ProofQueue(intervals.prove)
        self._depth.set_function(lambda: queue.depth)
        self._api.open(queue, profile)
        tasks.create_task(queue.serve(), name="proof-queue")
        self._detail = f"profile {manifest.profile} ({manifest.srs} reference string)"

    def readiness(self) -> str:
        """Which profile is served."""
        return self._detail

    async def drain(self) -> None:
        """Nothing: finished chunks are stored, an unfinished one is asked for again."""

    async def stop(self) -> None:
        """Leave no witness behind; the worker ended with its task."""
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    def _clear_scratch(self) -> None:
        # A killed prover leaves its job directory, and in it token ids.
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(mode=0o700)

    async def _work(self, job: prover_job.Job) -> prover_job.Result:
        settings = WorkerSettings(
            timeout_seconds=self._settings.job_timeout_seconds,
            threads=self._settings.threads,
            nice=self._settings.nice,
            scratch=self._scratch,
        )
        return await run_worker(job, settings)

    def _report(self, step: str) -> None:
        self._detail = step
        _log.info("proof profile", step=step)

    def _note(self, outcome: str, spent: prover_job.Spent | None) -> None:
        self._chunks.labels(outcome).inc()
        if spent is not None:
            self._cpu.inc(spent.cpu_seconds)
            self._wall.observe(spent.wall_seconds)
            _log.info("chunk proven", cpu_seconds=spent.cpu_seconds)


def main() -> int:
    """Read the settings and run until told to stop."""
    settings = settings_from_arguments(sys.argv[1:])
    return run_service(
        "prover",
        settings.node,
        lambda shell: ProverProcess(shell, settings.prover),
        settings.prover,
    )


if __name__ == "__main__":
    sys.exit(main())
