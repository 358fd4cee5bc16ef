"""Changing the model of a real inference process, through its socket and the command."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from nodeapp.core.errors import Busy, NotFound, Unavailable
from nodeapp.core.model_card import model_id
from nodeapp.inference.adding import Addition, add_model
from nodeapp.inference.loading import physical_cores
from nodeapp.inference.model_source import FileSource
from nodeapp.inference.model_store import ModelStore
from nodeapp.inference.probe import Prober
from nodeapp.rpc.inference import InferenceClient
from nodeapp.security.sandbox import landlock_version
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import NodeSettings
from nodeapp.service.tree import read_readiness
from nodeapp.wire.ipc_inference import Finished
from tests.fakes.tiny_model import tiny_model
from tests.inference.conftest import chat
from tests.inference.process import end, start, until_ready
from tests.world import CLI

NAMES = ("a", "b")


@dataclass
class Node:
    directory: Path
    cache: Path
    store: ModelStore
    configured: Path
    child: subprocess.Popen | None = None

    @property
    def socket(self):
        return self.directory / "run" / "inference.sock"

    def start(self, **changes):
        self.child = start(self.directory, self.configured, model_sha256='""', **changes)
        until_ready(self.child, self.socket)

    def command(self, *arguments, code=0):
        done = subprocess.run(
            (*CLI, "model", *arguments, "--state-dir", str(self.directory)),
            capture_output=True,
            check=False,
            text=True,
            timeout=40,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    async def settled(self, client):
        async with asyncio.timeout(30):
            while (state := await client.model_state()).phase not in ("serving", "none"):
                await asyncio.sleep(0.01)
        return state


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A store with two models and a third file for the settings; filled once, copied per test."""
    directory = tmp_path_factory.mktemp("prepared")
    store = ModelStore(directory / "models")
    prober = Prober(directory / "verdicts.json", seconds=20)
    for number, name in enumerate(NAMES):
        path = directory / f"{name}.gguf"
        path.write_bytes(tiny_model(seed=number))
        addition = Addition(str(path), FileSource(path), 1, name, "test/models", f"{name}.gguf")
        asyncio.run(add_model(addition, store, prober, report=lambda _: None, say=lambda _: None))
    (directory / "configured.gguf").write_bytes(tiny_model(seed=9))
    return directory


@pytest.fixture
def node(prepared, tmp_path):
    state = tmp_path / "n"
    shutil.copytree(prepared / "models", state / "models")
    made = Node(state, tmp_path / "cache", ModelStore(state / "models"), tmp_path / "c.gguf")
    shutil.copy(prepared / "configured.gguf", made.configured)
    yield made
    if made.child is not None:
        end(made.child)


@asynccontextmanager
async def asking(node):
    async with InferenceClient(node.socket) as client:
        yield client


async def served_id(client):
    (facts,) = (await client.models()).models
    return facts.model_id


def test_a_model_is_changed_while_the_process_answers(node):
    node.start()

    async def story():
        async with (
            asking(node) as client,
            aclosing(client.generate(chat("hi", max_tokens=300))) as events,
        ):
            await anext(events)
            await client.use_model("b")
            with pytest.raises(Busy, match="another change"):
                await client.use_model("a")
            rest = [event async for event in events]
            assert isinstance(rest[-1], Finished)
            assert (await node.settled(client)).name == "b.gguf"
            assert await served_id(client) == model_id("test/models", "b.gguf")
            with pytest.raises(NotFound, match="there: a, b"):
                await client.use_model("nosuch")

    asyncio.run(story())
    (used,) = [row for row in json.loads(node.command("list", "--json")) if row["in_use"]]
    assert used["name"] == "b"
    assert used["last_used"] > 0
    assert "in use" in node.command("remove", "b", code=1)


def test_the_choice_outlives_a_restart_until_the_settings_change(node):
    node.start()
    assert node.command("use", "a").startswith("a.gguf F32, context 512")
    end(node.child)
    node.start()

    async def which():
        async with asking(node) as client:
            return await served_id(client)

    assert asyncio.run(which()) == model_id("test/models", "a.gguf")
    end(node.child)
    moved = node.configured.with_name("moved.gguf")
    node.configured.rename(moved)
    node.configured = moved
    node.start()
    assert asyncio.run(which()) not in {model_id("test/models", f"{name}.gguf") for name in NAMES}


def test_a_damaged_model_is_refused_and_the_old_one_goes_on(node):
    node.start()
    blob = node.store.blob(node.store.find("a").sha256)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-9] ^= 1
    blob.write_bytes(data)
    said = node.command("use", "a", code=1)
    assert hashlib.sha256(data).hexdigest() in said
    assert "is still served" in said
    assert node.child.poll() is None


def test_unloading_gives_the_memory_back_and_says_so(node):
    node.start()
    node.command("unload")

    async def story():
        async with asking(node) as client:
            with pytest.raises(Unavailable, match="operator unloaded it") as caught:
                async with aclosing(client.generate(chat("hi"))) as events:
                    await anext(events)
            assert caught.value.retry_after_seconds
            await client.use_model("")
            state = await node.settled(client)
            assert (state.phase, state.error) == ("serving", "")

    asyncio.run(story())


def test_readyz_tells_that_no_model_is_served(node):
    node.start()
    node.command("unload")
    status = asyncio.run(
        read_readiness(resolve_paths(NodeSettings(str(node.directory))), "inference")
    )
    assert (status.ready, status.detail) == (False, "no model is loaded; the operator unloaded it")


def test_the_process_gives_up_what_it_does_not_need(node):
    """No new privileges, no core file; with a model of the catalogue, named by the settings."""
    node.start(model_path='""', model='"b"')

    async def which():
        async with asking(node) as client:
            return await served_id(client)

    assert asyncio.run(which()) == model_id("test/models", "b.gguf")
    status = Path(f"/proc/{node.child.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert psutil.Process(node.child.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)


def bound_threads(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    allowed = [task.read_text().split("Cpus_allowed_list:\t")[1].split("\n")[0] for task in tasks]
    return [cpus for cpus in allowed if cpus.isdigit()]


@pytest.mark.skipif(physical_cores() < 2, reason="one core")
def test_pinned_threads_have_a_core_each_and_the_others_are_free(node):
    node.start()
    assert bound_threads(node.child.pid) == []
    end(node.child)
    node.start(pin_threads="true")
    bound = bound_threads(node.child.pid)
    assert len(set(bound)) == 2
    assert (
        not Path(f"/proc/{node.child.pid}/task/{node.child.pid}/status")
        .read_text()
        .count(f"Cpus_allowed_list:\t{bound[0]}\n")
    )


@pytest.mark.skipif(landlock_version() < 4, reason="kernel without Landlock")
def test_who_takes_the_process_over_writes_and_connects_nowhere(tmp_path):
    code = """
import socket, sys
from pathlib import Path
from nodeapp.inference.main import give_up_what_is_not_needed
from nodeapp.service.config import load_settings
state = Path(sys.argv[1])
flags = [f"node.state_dir={state}", f"node.cache_dir={state.parent / 'cache'}"]
(state / "chain").mkdir(parents=True)
give_up_what_is_not_needed(load_settings(flags=flags))
tries = (
    lambda: (state / "inference" / "digests.json").write_text("x"),
    lambda: (state / "models" / "catalogue.json").write_text("x"),
    lambda: (state / "chain" / "journal.db").write_text("x"),
    lambda: (Path.home() / ".profile-of-a-thief").write_text("x"),
    lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
)
for attempt in tries:
    try:
        attempt()
        print("done")
    except PermissionError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state")],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == ["done"] * 2 + ["refused"] * 3
