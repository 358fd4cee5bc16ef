"""Which GPUs the replicas get, by what a driver says and a model needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.inference.gpu import Gpu
from nodeapp.inference.gpu_guard import GpuGuard
from nodeapp.inference.metrics import GpuMetrics
from nodeapp.inference.nvml import NvmlInventory
from nodeapp.inference.placement import Needs
from nodeapp.inference.replicas import choose_devices, with_devices
from nodeapp.service.clock import SystemClock
from nodeapp.service.config import load_settings
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import InferenceSettings, Settings
from tests.fakes.nvml import GIB, FakeDevice, FakeNvml
from tests.fakes.tiny_model import tiny_model
from tests.models.test_placement import NEEDS

AUTO = InferenceSettings()


def gpus(*free: int) -> list[Gpu]:
    return [
        Gpu(index, "g", f"GPU-{index}", total_bytes=24 * GIB, free_bytes=one)
        for index, one in enumerate(free)
    ]


def needs() -> Needs:
    return NEEDS


def unasked() -> Needs:
    raise AssertionError("the model file need not be read")


def test_auto_is_one_for_each_gpu_that_takes_the_whole_model() -> None:
    assert choose_devices(AUTO, gpus(20 * GIB, 20 * GIB), needs) == ("GPU-0", "GPU-1")
    assert choose_devices(AUTO, gpus(20 * GIB, 2 * GIB, 9 * GIB), needs) == ("GPU-0", "GPU-2")


def test_auto_leaves_one_process_where_the_model_must_be_split_or_fits_once() -> None:
    assert choose_devices(AUTO, gpus(6 * GIB, 6 * GIB), needs) == ()
    assert choose_devices(AUTO, gpus(20 * GIB, 6 * GIB), needs) == ()


@pytest.mark.parametrize("free", [(), (20 * GIB,)])
def test_auto_reads_no_model_where_there_is_no_choice(free: tuple[int, ...]) -> None:
    assert choose_devices(AUTO, gpus(*free), unasked) == ()


def test_a_number_is_dealt_the_devices_in_turn() -> None:
    def asked(count: int, *free: int) -> tuple[str, ...]:
        return choose_devices(InferenceSettings(replicas=count), gpus(*free), unasked)

    assert asked(1, 1, 1) == ()
    assert asked(2, 1, 1) == ("GPU-0", "GPU-1")
    assert asked(2, 1, 1, 1, 1) == ("GPU-0,GPU-2", "GPU-1,GPU-3")
    assert asked(3, 1, 1) == ("GPU-0", "GPU-1", "GPU-0")
    assert asked(2) == ()


def test_a_device_without_a_uuid_goes_by_its_number() -> None:
    plain = [replace(one, uuid="") for one in gpus(1, 1)]
    assert choose_devices(InferenceSettings(replicas=2), plain, unasked) == ("0", "1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "m.gguf"
    file.write_bytes(tiny_model())
    flags = [f"inference.model_path={file}", f"node.state_dir={tmp_path}"]
    return load_settings(flags=[*flags, "inference.context_length=256"], environment={})


def dealt(settings, *devices, visible="", **more):
    return with_devices(settings, NvmlInventory(FakeNvml(*devices, **more), seconds=0.2), visible)


def test_two_healthy_gpus_are_two_processes(settings: Settings) -> None:
    found = dealt(settings, FakeDevice(), FakeDevice())
    assert found.inference.devices == ("GPU-0000-aaaa", "GPU-0001-aaaa")
    assert found.node.processes[2:4] == ("inference", "inference-1")


@pytest.mark.parametrize(
    "devices", [(FakeDevice(), FakeDevice(is_lost=True)), (FakeDevice(), FakeDevice(ecc=1)), ()]
)
def test_a_faulty_gpu_gets_no_process(settings: Settings, devices: tuple[FakeDevice, ...]) -> None:
    assert dealt(settings, *devices) == settings


def test_only_what_cuda_may_see_is_dealt(settings: Settings) -> None:
    found = dealt(settings, FakeDevice(), FakeDevice(), FakeDevice(), visible="2,0")
    assert found.inference.devices == ("GPU-0002-aaaa", "GPU-0000-aaaa")
    assert dealt(settings, FakeDevice(), FakeDevice(), visible="1") == settings


def test_what_is_in_trouble_is_left_to_the_process_that_says_so(settings: Settings) -> None:
    pair = (FakeDevice(), FakeDevice())
    assert dealt(settings, *pair, broken="hang memory") == settings
    own = msgspec.structs.replace(settings.inference, model_path="/nosuch.gguf")
    lost = msgspec.structs.replace(settings, inference=own)
    assert dealt(lost, *pair) == lost


def test_the_processor_and_named_devices_are_left_as_they_are(settings: Settings) -> None:
    for change in ({"gpu_layers": 0}, {"devices": ("1", "0")}):
        own = msgspec.structs.replace(settings.inference, **change)
        asked = msgspec.structs.replace(settings, inference=own)
        assert dealt(asked, FakeDevice(), FakeDevice()) == asked


async def test_a_replica_without_its_device_does_not_fall_back_to_the_processor():
    def guard(visible, *, is_dealt):
        inventory = NvmlInventory(FakeNvml(FakeDevice()), seconds=1)
        metrics = GpuMetrics(Metrics("inference"))
        return GpuGuard(inventory, metrics, SystemClock(), visible=visible, is_dealt=is_dealt)

    with pytest.raises(Unavailable, match="gpu GPU-gone is not there"):
        await guard("GPU-gone", is_dealt=True).usable(NEEDS)
    assert await guard("-1", is_dealt=False).usable(NEEDS) == ()
    assert len(await guard("GPU-0000", is_dealt=True).usable(NEEDS)) == 1
