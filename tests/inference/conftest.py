from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio

# libgomp reads it when llama.cpp is loaded; long spinning starves other tests.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from nodeapp.inference.engine import Engine, EngineOptions
from nodeapp.inference.llama import LoadOptions
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.models import ModelFile, check_model
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.wire.ipc_inference import ChatMessage, Finished, GenerateRequest, Produced, Started
from tests.inference.openai_bridge import bridged
from tests.inference.process import MODEL_SHA256, end, start, until_ready


@pytest.fixture(scope="session")
def model_card(model_path, tmp_path_factory):
    digests = tmp_path_factory.mktemp("digests") / "d.json"
    return check_model(ModelFile(model_path, MODEL_SHA256, "test/repo", "model.gguf"), digests)


@dataclass
class Answer:
    started: Started
    ids: list[int]
    text: str
    finished: Finished


class RunningEngine:
    """An engine with its metrics, and the questions tests ask again and again."""

    def __init__(self, engine, metrics):
        self.engine = engine
        self._metrics = metrics

    def metric(self, name):
        for line in self._metrics.render().decode().splitlines():
            if line.startswith(f"fabstir_inference_{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    async def until(self, name, wanted, *, seconds=10.0):
        async with asyncio.timeout(seconds):
            while self.metric(name) != wanted:
                await asyncio.sleep(0.005)

    async def ask(self, request):
        started, finished, ids, text = None, None, [], ""
        async with asyncio.timeout(30), aclosing(self.engine.generate(request)) as events:
            async for event in events:
                match event:
                    case Started():
                        started = event
                    case Produced(token_ids, piece):
                        ids += token_ids
                        text += piece
                    case Finished():
                        finished = event
        return Answer(started, ids, text, finished)


def chat(text, *, max_tokens=24, **more):
    return GenerateRequest(
        "r", messages=(ChatMessage("user", text),), max_tokens=max_tokens, **more
    )


@asynccontextmanager
async def running_engine(
    model_card, model_path, *, context_length=1024, kv_tokens=2048, threads=2, **changes
):
    given = {
        "max_sequences": 4,
        "prefill_chunk_tokens": 128,
        "queue_requests": 8,
        "slow_reader_seconds": 10.0,
    } | changes
    options = EngineOptions(context_length=context_length, **given)
    load = LoadOptions(
        path=model_path,
        kv_tokens=kv_tokens,
        sequences=2 * options.max_sequences,
        batch_tokens=options.prefill_chunk_tokens + options.max_sequences,
        threads=threads,
        gpu_layers=0,
    )
    metrics = Metrics("inference")
    engine = Engine(model_card, load, options, clock=SystemClock())
    try:
        await engine.start(InferenceMetrics(metrics))
        yield RunningEngine(engine, metrics)
    finally:
        await engine.stop()


@pytest.fixture
def engine_on(model_card, model_path):
    """A context manager: an engine of the test's own, with these options."""
    return partial(running_engine, model_card, model_path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(model_card, model_path):
    """One engine for all tests of a module that leave nothing behind."""
    async with running_engine(model_card, model_path) as engine:
        yield engine


@pytest.fixture(scope="module")
def served(model_path, tmp_path_factory):
    """An inference process of the module's own: the base URL of its OpenAI API, and its socket."""
    directory = tmp_path_factory.mktemp("openai")
    child = start(directory, model_path, context_length=1024)
    path = directory / "run" / "inference.sock"
    try:
        until_ready(child, path)
        with bridged(path) as url:
            yield url, path
    finally:
        end(child)


@pytest.fixture(scope="module")
def client(served):
    """The official client of it."""
    import openai  # few tests of the area wait a second for it

    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0, timeout=60)
