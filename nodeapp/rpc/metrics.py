"""Metrics of processes: the Prometheus text of their sockets, as numbers or all in one text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from nodeapp.core.errors import Unavailable
from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Readiness

READY = "fabstir_node_process_ready"


async def read_metrics(socket_path: Path, *, seconds: float = 5.0) -> Mapping[str, float]:
    """Every metric by its name, samples with labels added up.

    Raises:
        Unavailable: the process does not answer.
    """
    return parse_metrics(await _text(socket_path, seconds))


async def metrics_together(sockets: Mapping[str, Path], *, seconds: float = 5.0) -> bytes:
    """One text with the metrics of all processes; one that does not answer is not ready."""
    async with asyncio.TaskGroup() as tasks:
        asked = {
            process: tasks.create_task(_one(path, seconds)) for process, path in sockets.items()
        }
    registry = CollectorRegistry()
    registry.register(_Together({process: task.result() for process, task in asked.items()}))
    return generate_latest(registry)


async def _one(path: Path, seconds: float) -> tuple[bool, str]:
    try:
        async with RpcClient(path, path.stem) as client:
            readiness = await client.get("/readyz", Readiness, deadline_seconds=seconds)
        return readiness.ready, await _text(path, seconds)
    except Unavailable:
        return False, ""


async def _text(socket_path: Path, seconds: float) -> str:
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket_path))) as web,
            web.get("http://process/metrics") as response,
        ):
            return await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unavailable(f"{socket_path.stem} is not reachable: {type(error).__name__}") from error


class _Together(Collector):
    """Replicas have the same metrics with labels of their own: one family, all samples."""

    def __init__(self, answers: Mapping[str, tuple[bool, str]]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(READY, "1: the process is ready", labels=["process"])
        families: dict[str, Metric] = {}
        for process, (is_ready, text) in self._answers.items():
            ready.add_metric([process], float(is_ready))
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)
        yield ready
        yield from families.values()


def parse_metrics(text: str) -> Mapping[str, float]:
    """Sums by metric name.

    Source: Prometheus text exposition format 0.0.4.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        labelled, _, value = line.rpartition(" ")
        name = labelled.partition("{")[0]
        found[name] = found.get(name, 0.0) + float(value)
    return found
