"""The inference process itself: a real child, asked over its Unix socket."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from contextlib import aclosing

import aiohttp
import psutil
import pytest

from nodeapp.core.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from nodeapp.core.model_card import model_id
from nodeapp.rpc.inference import InferenceClient
from nodeapp.wire.ipc_inference import Finished, GenerateRequest, Produced, Started
from tests.inference.conftest import MODEL_SHA256, chat

LONG = "Tell me a very long story about dragons, knights and a castle by the sea."


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


@pytest.fixture(scope="module")
def process(model_path, tmp_path_factory):
    directory = tmp_path_factory.mktemp("node")
    child = start(directory, model_path)
    path = directory / "run" / "inference.sock"
    try:
        until_ready(child, path)
        yield path
    finally:
        end(child)
    assert child.returncode == 0
    assert not path.exists()


async def collect(client, request):
    async with asyncio.timeout(30), aclosing(client.generate(request)) as events:
        return [event async for event in events]


async def collect_rest(events):
    return [event async for event in events]


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


async def test_the_model_is_listed_with_its_facts(process):
    async with InferenceClient(process) as client:
        (model,) = (await client.models()).models
    assert model.sha256 == MODEL_SHA256
    assert model.model_id == model_id(model.repo, model.file_name)
    assert (model.context_length, model.trained_context_length) == (512, 8192)
    assert (model.architecture, model.quantisation) == ("llama", "Q4_1")
    assert 2 in model.end_token_ids


async def test_an_answer_streams_over_the_socket(process):
    async with InferenceClient(process) as client:
        events = await collect(client, chat("Name three animals.", max_tokens=40))
    assert isinstance(events[0], Started)
    produced = [event for event in events if isinstance(event, Produced)]
    assert len(produced) > 3
    assert "2. " in "".join(event.text for event in produced)
    count = sum(len(event.token_ids) for event in produced)
    assert events[-1] == Finished("stop", count)


async def test_leaving_the_stream_frees_the_sequence(process):
    async with InferenceClient(process) as client:
        async with aclosing(client.generate(chat(LONG, max_tokens=400))) as events:
            async for event in events:
                if isinstance(event, Produced):
                    break
        await until_metric(process, "requests_processing", 0)
        await until_metric(process, "kv_tokens", 0)


async def test_a_client_that_dies_frees_the_sequence(process):
    client = InferenceClient(process)
    await client.__aenter__()
    events = client.generate(chat(LONG, max_tokens=400))
    await anext(events)
    await client.__aexit__()
    await until_metric(process, "requests_processing", 0)
    await events.aclose()


async def test_refusals_arrive_typed_with_their_numbers(process):
    async with InferenceClient(process) as client:
        with pytest.raises(TooLarge, match=r"prompt of \d+ tokens does not fit .* 512 tokens"):
            await collect(client, chat("word " * 800))
        with pytest.raises(InvalidRequest, match="empty prompt"):
            await collect(client, GenerateRequest("r"))
        with pytest.raises(InvalidRequest, match="lone surrogate"):
            await collect(client, chat("\ud800"))
        with pytest.raises(NotFound, match="not served"):
            await collect(client, chat("hi", model_id="0xabc"))
        with pytest.raises(InvalidRequest, match="max_tokens"):
            await collect(client, chat("hi", max_tokens=0))


async def test_a_reader_that_stops_reading_does_not_stop_others(process):
    async with InferenceClient(process) as client:
        async with aclosing(client.generate(chat(LONG, max_tokens=400))) as slow:
            await anext(slow)
            quick = await collect(client, chat("Name three animals.", max_tokens=40))
            assert quick[-1].reason in {"stop", "length"}
        await until_metric(process, "requests_processing", 0)


def test_sigterm_with_an_open_stream_ends_in_time_and_leaves_nothing(model_path, tmp_path):
    child = start(tmp_path, model_path)
    path = tmp_path / "run" / "inference.sock"
    try:
        until_ready(child, path)

        async def stream_then_stop():
            async with InferenceClient(path) as client:
                async with aclosing(client.generate(chat(LONG, max_tokens=60))) as events:
                    await anext(events)
                    child.send_signal(signal.SIGTERM)
                    rest = [event async for event in events]
                assert isinstance(rest[-1], Finished)

        asyncio.run(stream_then_stop())
        assert child.wait(12) == 0
        assert not path.exists()
    finally:
        end(child)


def test_kill_in_mid_stream_is_unavailable_and_leaves_no_child(model_path, tmp_path):
    child = start(tmp_path, model_path)
    path = tmp_path / "run" / "inference.sock"
    try:
        until_ready(child, path)
        seen = []

        async def stream_then_kill():
            async with InferenceClient(path) as client, asyncio.timeout(20):
                async with aclosing(client.generate(chat(LONG, max_tokens=300))) as events:
                    seen.append(await anext(events))
                    seen.append(await anext(events))
                    renderers = psutil.Process(child.pid).children()
                    child.kill()
                    with pytest.raises(Unavailable):
                        seen.extend(await collect_rest(events))
                return renderers

        renderers = asyncio.run(stream_then_kill())
        assert isinstance(seen[1], Produced)
        assert len(renderers) == 1
        _, alive = psutil.wait_procs(renderers, timeout=5)
        assert not alive
    finally:
        end(child)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_path": '"/nowhere/x.gguf"'}, "does not exist: run `make setup`"),
        ({"model_sha256": f'"{"0" * 64}"'}, "fetch it again"),
        ({"model_path": '""'}, "inference.model_path is empty"),
        ({"model_path": f'"{__file__}"'}, "not a usable GGUF file"),
    ],
)
def test_a_bad_model_ends_the_process_with_one_clear_line(model_path, tmp_path, changes, text):
    child = start(tmp_path, model_path, **changes)
    try:
        _, stderr = child.communicate(timeout=20)
    finally:
        child.kill()
    assert child.returncode == 1
    assert text in stderr.decode()
    assert "Traceback" not in stderr.decode()
