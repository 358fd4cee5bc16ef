"""From a checked file to an engine: backing off, and noticing that somebody touched the file."""

from __future__ import annotations

import os
import resource

import psutil
import pytest

from nodeapp.core.errors import Corrupt, NotFound, Rejected, Unavailable
from nodeapp.inference.gpu_guard import GpuGuard
from nodeapp.inference.loading import LoaderFiles, ModelLoader
from nodeapp.inference.metrics import GpuMetrics, InferenceMetrics
from nodeapp.inference.model_store import ModelStore
from nodeapp.inference.models import ModelFile
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import InferenceSettings
from tests.fakes.nvml import FakeDevice, FakeNvml
from tests.fakes.tiny_model import tiny_model

SETTINGS = InferenceSettings(context_length=256, max_sequences=2, threads=1)


class Loading:
    def __init__(self, tmp_path, settings=SETTINGS, devices=()):
        self.model = ModelFile(tmp_path / "m.gguf", "", "r", "m.gguf")
        self.model.path.write_bytes(tiny_model())
        metrics = Metrics("inference")
        self.api = FakeNvml(*devices)
        self.guard = GpuGuard(
            NvmlInventory(self.api, seconds=1), GpuMetrics(metrics), SystemClock()
        )
        self.loader = ModelLoader(
            settings,
            self.guard,
            InferenceMetrics(metrics),
            SystemClock(),
            store=ModelStore(tmp_path / "models"),
            files=LoaderFiles(tmp_path / "digests.json", tmp_path / "verdicts.json"),
        )
        self.said = []

    async def check(self):
        return await self.loader.check(self.model, self.said.append)

    async def load(self, card):
        return await self.loader.load(self.model, card, self.said.append)

    def overwrite(self, data, *, seconds=5):
        """In place, with another time stamp; never shorter, what is mapped may be read now."""
        with self.model.path.open("r+b") as file:
            file.write(data)
        now = self.model.path.stat().st_mtime + seconds
        os.utime(self.model.path, (now, now))


@pytest.fixture
def little_memory():
    """A gigabyte more than this process has mapped already."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


async def test_a_load_that_fails_is_tried_with_less(tmp_path, little_memory):
    """Four gigabytes of cells fit the fake device, not this machine: the fewest do."""
    settings = InferenceSettings(context_length=256, max_sequences=2, threads=1, kv_tokens=1 << 25)
    loading = Loading(tmp_path, settings, (FakeDevice(),))
    served = await loading.load(await loading.check())
    try:
        assert served.engine.context_length == 256
        assert any("trying 2 layers on GPU" in line for line in loading.said)
    finally:
        await served.engine.stop()


async def test_a_faulty_gpu_is_not_loaded_onto_but_the_processor_may_be_asked_for(tmp_path):
    loading = Loading(tmp_path, devices=(FakeDevice(is_lost=True),))
    card = await loading.check()
    with pytest.raises(Unavailable, match="in quarantine"):
        await loading.load(card)
    plain = Loading(
        tmp_path,
        InferenceSettings(context_length=256, max_sequences=2, threads=1, gpu_layers=0),
        (FakeDevice(is_lost=True),),
    )
    served = await plain.load(card)
    await served.engine.stop()


async def test_a_file_replaced_between_check_and_load_is_refused(tmp_path):
    loading = Loading(tmp_path)
    card = await loading.check()
    loading.overwrite(tiny_model(seed=2))
    with pytest.raises(Rejected, match="replaced since it was verified"):
        await loading.load(card)


async def test_a_served_file_that_is_touched_is_hashed_and_written_to_is_corrupt(tmp_path):
    loading = Loading(tmp_path)
    served = await loading.load(await loading.check())
    try:
        await loading.loader.look_again(served)
        loading.overwrite(tiny_model())
        await loading.loader.look_again(served)
        loading.overwrite(tiny_model(seed=2), seconds=9)
        with pytest.raises(Corrupt, match="changed while it is served"):
            await loading.loader.look_again(served)
        loading.model.path.unlink()
        await loading.loader.look_again(served)
    finally:
        await served.engine.stop()


async def test_a_file_that_is_gone_is_named(tmp_path):
    loading = Loading(tmp_path)
    loading.model.path.unlink()
    with pytest.raises(NotFound, match="does not exist"):
        await loading.check()
