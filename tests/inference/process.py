"""An inference process as a child: started, waited for, measured and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import aiohttp

MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def start(directory, model, /, **changes):
    values = {
        "model_path": f'"{model}"',
        "model_sha256": f'"{MODEL_SHA256}"',
        "context_length": 512,
        "threads": 2,
    } | changes
    settings = directory / "node.toml"
    settings.write_text(
        f'[node]\nstate_dir = "{directory}"\nlog_format = "json"\n[inference]\n'
        + "\n".join(f"{key} = {value}" for key, value in values.items())
    )
    return subprocess.Popen(
        [sys.executable, "-m", "nodeapp.inference.main", "--config", str(settings)],
        # As in conftest.py: long spinning starves other tests.
        env={"GOMP_SPINCOUNT": "20000", **os.environ},
        stderr=subprocess.PIPE,
    )


def until_ready(child, path, *, seconds=30):
    """Poll /readyz until it says ready; the child must not end meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert child.poll() is None, child.stderr.read().decode()
        try:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.settimeout(2)
                asked.connect(str(path))
                asked.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                reply = b""
                while part := asked.recv(65536):
                    reply += part
            if b'"ready":true' in reply:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("inference is not ready")


def end(child):
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(10)
    finally:
        child.kill()
        child.stderr.close()


async def metric(path, name):
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://x/metrics") as reply,
    ):
        for line in (await reply.text()).splitlines():
            if line.startswith(f"fabstir_inference_{name} "):
                return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


async def until_metric(path, name, wanted):
    async with asyncio.timeout(10):
        while await metric(path, name) != wanted:
            await asyncio.sleep(0.01)
