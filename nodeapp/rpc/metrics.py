"""A process's metrics as numbers: the Prometheus text of its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from nodeapp.core.errors import Unavailable


async def read_metrics(socket_path: Path, *, seconds: float = 5.0) -> Mapping[str, float]:
    """Every metric by its name, samples with labels added up.

    Raises:
        Unavailable: the process does not answer.
    """
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket_path))) as web,
            web.get("http://process/metrics") as response,
        ):
            return parse_metrics(await response.text())
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unavailable(f"{socket_path.stem} is not reachable: {type(error).__name__}") from error


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
