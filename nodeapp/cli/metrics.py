"""fabstir-node metrics: the numbers of all processes in one, for Prometheus.

Each process shows its own on its Unix socket. The listener answers GET /metrics and nothing else.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, settings_of

if TYPE_CHECKING:
    from nodeapp.service.paths import Paths
    from nodeapp.service.settings import Settings

_ADDRESS = re.compile(r"(?P<host>[0-9A-Za-z.:-]{0,253}|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
Listen = Annotated[
    str,
    typer.Option(metavar="ADDRESS:PORT", help="Answer Prometheus there until told to stop."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("metrics")(metrics)


def metrics(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    listen: Listen = "",
) -> None:
    """Print the metrics of every process, in Prometheus's text form."""
    import asyncio

    from nodeapp.service.paths import resolve_paths

    settings = settings_of(config, state_dir, flags)
    paths = resolve_paths(settings.node)
    if listen:
        asyncio.run(_serve(paths, settings, *_place(listen)))
    else:
        sys.stdout.buffer.write(asyncio.run(_gather(paths, settings)))


def _place(listen: str) -> tuple[str, int]:
    from nodeapp.core.errors import InvalidRequest

    found = _ADDRESS.fullmatch(listen)
    if found is None or int(found["port"]) > 65535:
        raise InvalidRequest(f"--listen {listen!r} is not ADDRESS:PORT, as 127.0.0.1:9464")
    return found["host"].strip("[]"), int(found["port"])


async def _gather(paths: Paths, settings: Settings) -> bytes:
    from nodeapp.rpc.metrics import metrics_together
    from nodeapp.service.supervisord import WATCHDOG
    from nodeapp.service.tree import running_processes

    running = await running_processes(paths, settings.node.processes)
    return await metrics_together({one: paths.socket(one) for one in (*running, WATCHDOG)})


async def _serve(paths: Paths, settings: Settings, host: str, port: int) -> None:
    import asyncio
    import signal

    from aiohttp import web

    from nodeapp.core.errors import Unavailable

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=await _gather(paths, settings), content_type="text/plain")

    app = web.Application(client_max_size=0)
    app.router.add_get("/metrics", answer)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    runner = web.AppRunner(app, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        shown, bound = runner.addresses[0][:2]
        sys.stdout.write(f"metrics at http://{shown}:{bound}/metrics\n")
        sys.stdout.flush()
        await stopping.wait()
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}") from error
    finally:
        await runner.cleanup()
