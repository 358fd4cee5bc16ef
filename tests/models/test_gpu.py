"""GPU inventory through a fake driver that hangs, fails and lies; and what is made of it."""

from __future__ import annotations

import time

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.inference.gpu import Condition, Gpu, GpuProcess, judge, slots_left
from nodeapp.inference.gpu_guard import visible_devices
from nodeapp.inference.nvml import NvmlInventory
from tests.fakes.nvml import GIB, FakeDevice, FakeNvml


def devices(*given, **more):
    return NvmlInventory(FakeNvml(*given, **more), seconds=2.0).devices()


def test_a_device_is_listed_with_all_it_says():
    assert devices(FakeDevice(), FakeDevice(name="Other"))[0] == Gpu(
        index=0,
        name="Fake GPU",
        uuid="GPU-0000-aaaa",
        total_bytes=24 * GIB,
        free_bytes=20 * GIB,
        temperature_celsius=41,
        load_percent=7,
        power_watts=120.0,
        power_limit_watts=300.0,
        clock_mhz=2400,
        max_clock_mhz=2500,
        processes=(GpuProcess(1, 4 * GIB),),
    )


@pytest.mark.parametrize("broken", ["init", "count"])
def test_no_driver_is_no_gpu(broken):
    assert devices(FakeDevice(), broken=broken) == ()


def test_a_driver_of_another_version_says_what_to_do():
    with pytest.raises(Unavailable, match="restart the machine"):
        devices(FakeDevice(), broken="init", error_value=18)


def test_a_lost_device_carries_its_fault_and_the_others_go_on():
    found = devices(FakeDevice(), FakeDevice(is_lost=True), FakeDevice())
    assert [gpu.index for gpu in found] == [0, 1, 2]
    assert found[1].fault == "driver: GPU is lost"
    assert [judge(gpu).condition for gpu in found] == ["good", "faulty", "good"]


def test_questions_a_device_does_not_know_are_left_open():
    refusal = FakeNvml.NVMLError("Not Supported")
    (gpu,) = devices(
        FakeDevice(
            name=refusal, temperature=refusal, power=refusal, clock=refusal, ecc=refusal,
            reasons=refusal,
        )
    )  # fmt: skip
    assert (gpu.name, gpu.temperature_celsius, gpu.power_watts) == ("unknown", None, None)
    assert judge(gpu).condition is Condition.GOOD


def test_lies_never_make_a_device_look_better():
    (gpu,) = devices(
        FakeDevice(free=1 << 60, temperature=4000, load=-3, power=-1, clock=1 << 40, name="x" * 500)
    )
    assert gpu.free_bytes == gpu.total_bytes == 24 * GIB
    assert (gpu.temperature_celsius, gpu.load_percent, gpu.clock_mhz) == (None, None, None)
    assert (gpu.power_watts, len(gpu.name)) == (None, 96)
    (gpu,) = devices(FakeDevice(total=0, free=0))
    assert judge(gpu).reason == "says that it has no memory"
    (gpu,) = devices(FakeDevice(free=-5 * GIB))
    assert gpu.free_bytes == 0


@pytest.mark.parametrize("where", ["init", "count", "memory"])
def test_a_hanging_driver_holds_nobody_up(where):
    api = FakeNvml(FakeDevice(), broken=f"hang {where}")
    inventory = NvmlInventory(api, seconds=0.05)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"does not answer inside 0\.05 s"):
        inventory.devices()
    for _ in range(5):
        with pytest.raises(Unavailable, match="still does not answer"):
            inventory.devices()
    assert time.monotonic() - began < 1.0
    assert api.asked == 1
    api.broken = ""
    api.let_go.set()
    inventory._hanging.join(5)
    assert len(inventory.devices()) == 1


def test_critical_errors_are_remembered():
    api = FakeNvml(FakeDevice(), FakeDevice())
    inventory = NvmlInventory(api)
    assert judge(inventory.devices()[1]).condition is Condition.GOOD
    api.xid(1, 79)
    api.xid(1, 79)
    api.xid(1, 13)
    for _ in range(2):
        first, second = inventory.devices()
        assert (first.xids, second.xids) == ((), (79, 13))
        assert judge(second).reason.startswith("xid 79: reset the device")


def test_a_program_error_is_no_fault_of_the_device():
    api = FakeNvml(FakeDevice())
    inventory = NvmlInventory(api)
    inventory.devices()
    api.xid(0, 13)
    assert judge(inventory.devices()[0]).condition is Condition.GOOD


def test_uncorrected_memory_errors_are_a_fault():
    assert "2 uncorrected" in judge(devices(FakeDevice(ecc=2))[0]).reason


@pytest.mark.parametrize(
    ("clock", "reasons", "condition", "slots"),
    [
        (2500, 0, Condition.GOOD, 8),
        (1250, 0, Condition.GOOD, 8),
        (1250, 0x20, Condition.SLOW, 4),
        (100, 0x40, Condition.SLOW, 2),
        (0, 0x8, Condition.SLOW, 2),
        (2450, 0x4, Condition.GOOD, 8),
    ],
)
def test_heat_and_power_lower_what_is_offered(clock, reasons, condition, slots):
    (gpu,) = devices(FakeDevice(clock=clock, reasons=reasons))
    judgement = judge(gpu)
    assert judgement.condition is condition
    assert slots_left(8, [judgement]) == slots


def test_the_slowest_device_decides_and_a_faulty_one_carries_nothing():
    good, slow, lost = (
        judge(gpu)
        for gpu in devices(
            FakeDevice(), FakeDevice(clock=1250, reasons=0x40), FakeDevice(is_lost=True)
        )
    )
    assert slots_left(8, [good, slow]) == 4
    assert slots_left(1, [slow]) == 1
    assert slots_left(8, [good, lost]) == 0
    assert slots_left(8, []) == 8


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-0001", [1]),
        ("0,7,1", [0]),
        ("1,1", [1]),
        ("-1", []),
        ("GPU-000", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(text, shown):
    found = devices(FakeDevice(), FakeDevice(), FakeDevice())
    assert [gpu.index for gpu in visible_devices(found, text)] == shown


def test_this_machine_answers_without_error():
    assert isinstance(NvmlInventory().devices(), tuple)
