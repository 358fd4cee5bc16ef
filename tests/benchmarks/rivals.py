"""The servers that are measured side by side, each a process of its own, asked over HTTP alike.

The others live in a private environment in the user's cache, made when first needed from
requirements.lock beside this file; llama-cpp-python itself is the product's own build, linked in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import aiohttp
import psutil

from nodeapp.service.paths import default_cache_dir
from tests.benchmarks.report import ROOT

LOCK = Path(__file__).with_name("requirements.lock")
SPIN = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000", "GGML_NO_BACKTRACE": "1"}
"""As appliance/supervisord.conf has it for inference; the others get the same."""
_LINKED = ("llama_cpp", "diskcache", "jinja2", "markupsafe")
_READY_SECONDS = 90.0
SLOT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `socket` is its Unix socket, "" when `url` is reached over TCP."""

    name: str
    process: subprocess.Popen[str]
    url: str
    socket: str = ""
    model: str = "any"

    def cpu_seconds(self) -> float:
        """What the process and its children have used."""
        own = psutil.Process(self.process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True)))

    def session(self) -> aiohttp.ClientSession:
        """A client; every request is a connection of its own."""
        connector: aiohttp.BaseConnector = (
            aiohttp.UnixConnector(self.socket, force_close=True, limit=0)
            if self.socket
            else aiohttp.TCPConnector(force_close=True, limit=0)
        )
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(900))


def environment() -> Path:
    """The python of the private environment; made when it is missing."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    home = default_cache_dir() / f"rivals-{digest}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    print(f"making {home} for the servers to compare with", flush=True)
    venv.create(home, with_pip=False, clear=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
    shared = home / "shared"
    shared.mkdir()
    for name in _LINKED:
        (shared / name).symlink_to(_package(name))
    (home / "complete").touch()
    return python


def _package(name: str) -> Path:
    code = f"import {name}, pathlib; print(pathlib.Path({name}.__file__).parent)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@contextmanager
def ours(
    directory: Path, model: Path, *, name: str = "node", **settings: object
) -> Iterator[Server]:
    """Our inference process."""
    home = directory / name
    home.mkdir()
    values = {"model_path": f'"{model}"', "context_length": SLOT_TOKENS} | settings
    lines = "\n".join(f"{key} = {value}" for key, value in values.items())
    (home / "node.toml").write_text(f'[node]\nstate_dir = "{home}"\n[inference]\n{lines}\n')
    words = ["-m", "nodeapp.inference.main", "--config", str(home / "node.toml")]
    socket = str(home / "run" / "inference.sock")
    with _process([sys.executable, *words], home / "log", {}) as process:
        server = _ready(Server(name, process, "http://node", socket), "/readyz", '"ready":true')
        models = json.loads(_get(server, "/v1/models"))
        yield replace(server, model=models["data"][0]["id"])


@contextmanager
def native(
    directory: Path, model: Path, *, threads: int, parallel: int, kind: str
) -> Iterator[Server]:
    """llama.cpp's own server; `kind` of KV cache: "split" (its default) or "unified"."""
    name = f"native-{kind}"
    script = str(Path(__file__).with_name("xllama_server.py"))
    shape = (str(threads), str(parallel), str(parallel * SLOT_TOKENS), kind)
    words = [str(environment()), script, str(model), *shape]
    with _process(words, directory / f"{name}.log", {}) as process:
        address = _first_line(process, name)
        yield _ready(Server(name, process, address), "/health", "ok")


@contextmanager
def binding(directory: Path, model: Path, *, threads: int, port: int) -> Iterator[Server]:
    """The server of llama-cpp-python; without its default of killing a stream for the next."""
    python = environment()
    extra = {"PYTHONPATH": str(python.parents[1] / "shared")}
    words = [str(python), "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    words += ["--n_ctx", str(SLOT_TOKENS), "--n_threads", str(threads)]
    words += ["--n_threads_batch", str(threads), "--interrupt_requests", "false"]
    with _process(words, directory / "binding.log", extra) as process:
        address = f"http://127.0.0.1:{port}"
        yield _ready(Server("binding", process, address), "/v1/models", "data")


@contextmanager
def _process(words: list[str], log: Path, extra: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as errors:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **SPIN, **extra},
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _first_line(process: subprocess.Popen[str], name: str) -> str:
    output: IO[str] | None = process.stdout
    line = output.readline() if output is not None else ""
    found = re.search(r"http://\S+", line)
    if found is None:
        raise RuntimeError(f"{name} printed {line!r} instead of its address")
    return found[0]


def _get(server: Server, path: str) -> str:
    words = ["curl", "-s", "--max-time", "5", f"{server.url}{path}"]
    if server.socket:
        words[1:1] = ["--unix-socket", server.socket]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _ready(server: Server, path: str, wanted: str) -> Server:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"{server.name} ended with {server.process.returncode}")
        if wanted in _get(server, path):
            return server
        time.sleep(0.2)
    raise RuntimeError(f"{server.name} was not ready inside {_READY_SECONDS:g} s")
