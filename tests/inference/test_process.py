"""The inference process itself: a real child, asked over its Unix socket."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing

import psutil
import pytest

from nodeapp.core.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from nodeapp.core.model_card import model_id
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.rpc.inference import InferenceClient
from nodeapp.wire.ipc_inference import Finished, GenerateRequest, Produced, Started
from tests.inference.conftest import chat
from tests.inference.process import MODEL_SHA256, end, start, until_metric, until_ready

LONG = "Tell me a very long story about dragons, knights and a castle by the sea."


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


async def test_the_model_is_listed_with_its_facts(process):
    async with InferenceClient(process) as client:
        (model,) = (await client.models()).models
    assert model.sha256 == MODEL_SHA256
    assert model.model_id == model_id(model.repo, model.file_name)
    assert (model.context_length, model.trained_context_length) == (512, 8192)
    assert (model.architecture, model.quantisation) == ("llama", "Q4_1")
    assert 2 in model.end_token_ids


async def test_the_gpus_that_the_driver_answers_for_are_counted(process):
    """What the health gate of an update asks; here there may be none."""
    there = [gpu for gpu in NvmlInventory().devices() if not gpu.fault]
    async with InferenceClient(process) as client:
        assert (await client.gpus()).answering == len(there)


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
