"""The guard: slots follow the heat, a fault is a quarantine, held memory is waited for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nodeapp.core.errors import Busy, Unavailable
from nodeapp.inference import gpu_guard
from nodeapp.inference.gpu import Gpu
from nodeapp.inference.gpu_guard import GpuGuard
from nodeapp.inference.metrics import GpuMetrics
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from tests.fakes.nvml import GIB, FakeDevice, FakeNvml
from tests.models.test_placement import NEEDS


class Watch:
    def __init__(self, *devices, seconds=0.05, visible="", **more):
        self.api = FakeNvml(*devices, **more)
        self.metrics = Metrics("inference")
        inventory = NvmlInventory(self.api, seconds=seconds)
        self.guard = GpuGuard(inventory, GpuMetrics(self.metrics), SystemClock(), visible=visible)
        self.quarantined = []

    async def until(self, condition):
        """The guard runs meanwhile; what ends it ends this, too."""
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            run = tasks.create_task(self.guard.run(self.quarantined.append))
            while not condition():
                await asyncio.sleep(0.005)
                assert not run.done()
            run.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpu_guard, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(gpu_guard, "SETTLE_SECONDS", 0.0)


async def test_heat_lowers_the_slots_and_cooling_raises_them():
    watch = Watch(FakeDevice())
    watch.guard.use((0,))
    assert watch.guard.slots(8) == 8
    watch.api.devices[0].clock, watch.api.devices[0].reasons = 1250, 0x40
    await watch.until(lambda: watch.guard.slots(8) == 4)
    assert "hot (hardware) at 41 °C: 50% of its clock" in watch.guard.text
    assert 'gpu_speed_ratio{gpu="0"} 0.5' in watch.metrics.render().decode()
    watch.api.devices[0].clock = 2500
    await watch.until(lambda: watch.guard.slots(8) == 8)
    assert watch.quarantined == []


@pytest.mark.parametrize("fault", ["xid", "lost", "ecc", "gone"])
async def test_a_faulty_device_is_told_once(fault):
    watch = Watch(FakeDevice(), FakeDevice())
    watch.guard.use((1,))
    await watch.until(lambda: watch.api.events == [])
    match fault:
        case "xid":
            NvmlInventory(watch.api).devices()
            await watch.until(lambda: 'gpu="1"' in watch.metrics.render().decode())
            watch.api.xid(1, 79)
        case "lost":
            watch.api.devices[1].is_lost = True
        case "ecc":
            watch.api.devices[1].ecc = 1
        case "gone":
            watch.api.devices.pop()
    await watch.until(lambda: watch.quarantined)
    (said,) = watch.quarantined
    assert said.startswith("gpu 1 faulty: ")


async def test_a_fault_of_a_device_that_is_not_used_is_nobodys_affair():
    watch = Watch(FakeDevice(), FakeDevice(is_lost=True))
    watch.guard.use((0,))
    await watch.until(lambda: 'gpu="1"' in watch.metrics.render().decode())
    assert (watch.quarantined, watch.guard.slots(8)) == ([], 8)


async def test_a_driver_that_hangs_is_a_fault_after_some_misses():
    watch = Watch(FakeDevice(), seconds=0.01)
    watch.guard.use((0,))
    watch.api.broken = "hang memory"
    await watch.until(lambda: watch.quarantined)
    assert "does not answer" in watch.quarantined[0]
    watch.api.let_go.set()


async def test_a_change_under_way_is_waited_for():
    watch = Watch(FakeDevice(is_lost=True))
    watch.guard.use((0,))
    asked = []

    def busy(reason):
        asked.append(reason)
        if len(asked) < 3:
            raise Busy("a change is under way")

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(watch.guard.run(busy))
        while len(asked) < 3:
            await asyncio.sleep(0.005)
        run.cancel()
    assert len(set(asked)) == 1, "the same fault, told until it was heard"


async def test_faulty_devices_are_not_loaded_onto_and_numbers_stay_cudas():
    watch = Watch(FakeDevice(), FakeDevice(is_lost=True), FakeDevice(), visible="2,1,0")
    assert [gpu.index for gpu in await watch.guard.usable(NEEDS)] == [2, 0]
    assert [watch.guard.ordinal(index) for index in (2, 0)] == [0, 2]


async def test_when_every_device_is_faulty_nothing_is_loaded():
    with pytest.raises(Unavailable, match="every gpu is in quarantine: gpu 0: driver: GPU is lost"):
        await Watch(FakeDevice(is_lost=True)).guard.usable(NEEDS)
    assert await Watch().guard.usable(NEEDS) == ()


async def test_memory_that_nobody_holds_is_not_mistaken_for_a_small_device():
    held = Watch(FakeDevice(free=2 * GIB, processes=[]))
    with pytest.raises(Unavailable, match=r"held by no process: reset the device"):
        await held.guard.usable(NEEDS)
    small = Watch(FakeDevice(total=4 * GIB, free=3 * GIB, processes=[]))
    assert len(await small.guard.usable(NEEDS)) == 1
    shared = Watch(FakeDevice(free=2 * GIB, processes=[]), FakeDevice())
    assert len(await shared.guard.usable(NEEDS)) == 2


async def test_memory_that_comes_free_in_time_is_used(monkeypatch):
    monkeypatch.setattr(gpu_guard, "SETTLE_SECONDS", 10.0)
    watch = Watch(FakeDevice(free=2 * GIB, processes=[]))
    sleeps = []

    async def freed(seconds):
        sleeps.append(seconds)
        watch.api.devices[0].free = 23 * GIB

    monkeypatch.setattr(gpu_guard.asyncio, "sleep", freed)
    (gpu,) = await watch.guard.usable(NEEDS)
    assert (gpu.free_bytes, sleeps) == (23 * GIB, [1.0])


def test_what_is_unaccounted_is_used_and_shown_by_none():
    gpu = Gpu(0, "g", total_bytes=10, free_bytes=4)
    assert gpu.unaccounted_bytes == 6
    assert replace(gpu, free_bytes=10).unaccounted_bytes == 0


async def test_gpus_that_answer_are_counted_also_those_no_model_uses():
    watch = Watch(FakeDevice(), FakeDevice(is_lost=True), FakeDevice(), visible="0")
    assert await watch.guard.answering() == 2
    assert await Watch().guard.answering() == 0


async def test_a_driver_that_does_not_fit_its_library_answers_for_no_gpu():
    """Its device nodes are there all the same."""
    watch = Watch(FakeDevice(), broken="init", error_value=18)
    with pytest.raises(Unavailable, match="different versions: restart the machine"):
        await watch.guard.answering()
