"""A TCP port in front of a process's Unix socket, so that any HTTP client can be used."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _connect(path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        far_reader, far_writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        writer.close()
        return
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_copy(reader, far_writer))
            tasks.create_task(_copy(far_reader, writer))


async def _serve(path: Path, port: Future[int], ended: asyncio.Event) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _connect(path, reader, writer)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    port.set_result(server.sockets[0].getsockname()[1])
    await ended.wait()
    server.close()


@contextlib.contextmanager
def bridged(path: Path) -> Iterator[str]:
    """The base URL of a loopback port that leads to the socket, from a thread of its own."""
    port: Future[int] = Future()
    ended = asyncio.Event()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=lambda: runner.run(_serve(path, port, ended)))
        thread.start()
        try:
            yield f"http://127.0.0.1:{port.result(5)}"
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(5)
