"""Stands in for the pynvml module: a driver with some devices that hang, fail or lie as told."""

# ruff: noqa: N802, N815
from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

GIB = 1 << 30


@dataclass
class FakeDevice:
    """What the driver says of it; a callable attribute is asked, an exception is raised."""

    name: object = b"Fake GPU"
    uuid: object = ""
    total: int = 24 * GIB
    free: int = 20 * GIB
    temperature: object = 41
    load: object = 7
    power: object = 120_000
    power_limit: object = 300_000
    clock: object = 2400
    max_clock: object = 2500
    reasons: object = 0
    ecc: object = 0
    processes: list = field(default_factory=lambda: [SimpleNamespace(pid=1, usedGpuMemory=4 * GIB)])
    is_lost: bool = False


class FakeNvml:
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    nvmlEventTypeXidCriticalError = 8
    nvmlEventTypeDoubleBitEccError = 2
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    class NVMLError(Exception):
        def __init__(self, text, value=0):
            super().__init__(text)
            self.value = value

    def __init__(self, *devices, broken="", error_value=0):
        self.devices = list(devices)
        for index, device in enumerate(self.devices):
            device.uuid = device.uuid or f"GPU-{index:04d}-aaaa"
        self.broken, self.error_value = broken, error_value
        self.events = []
        self.let_go = threading.Event()
        self.asked = 0

    def _step(self, name):
        if self.broken == f"hang {name}":
            self.asked += 1
            self.let_go.wait(30)
        if self.broken == name:
            raise self.NVMLError(f"{name} failed", self.error_value)

    def _say(self, value):
        if isinstance(value, Exception):
            raise value
        return value

    def nvmlInit(self):
        self._step("init")

    def nvmlDeviceGetCount(self):
        self._step("count")
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index):
        device = self.devices[index]
        if device.is_lost:
            raise self.NVMLError("GPU is lost")
        return device

    def nvmlDeviceGetMemoryInfo(self, device):
        self._step("memory")
        return SimpleNamespace(
            total=device.total, free=device.free, used=device.total - device.free
        )

    def nvmlDeviceGetName(self, device):
        return self._say(device.name)

    def nvmlDeviceGetUUID(self, device):
        return self._say(device.uuid)

    def nvmlDeviceGetTemperature(self, device, _sensor):
        return self._say(device.temperature)

    def nvmlDeviceGetUtilizationRates(self, device):
        return SimpleNamespace(gpu=self._say(device.load), memory=3)

    def nvmlDeviceGetPowerUsage(self, device):
        return self._say(device.power)

    def nvmlDeviceGetEnforcedPowerLimit(self, device):
        return self._say(device.power_limit)

    def nvmlDeviceGetClockInfo(self, device, _kind):
        return self._say(device.clock)

    def nvmlDeviceGetMaxClockInfo(self, device, _kind):
        return self._say(device.max_clock)

    def nvmlDeviceGetCurrentClocksEventReasons(self, device):
        return self._say(device.reasons)

    def nvmlDeviceGetTotalEccErrors(self, device, _kind, _counter):
        return self._say(device.ecc)

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return device.processes

    def nvmlEventSetCreate(self):
        self._step("events")
        return self.events

    def nvmlDeviceRegisterEvents(self, _device, _kinds, _events):
        pass

    def nvmlEventSetWait_v2(self, events, milliseconds):
        assert milliseconds == 0
        if not events:
            raise self.NVMLError("timeout")
        return events.pop(0)

    def xid(self, index, number):
        """A critical error happens."""
        self.events.append(
            SimpleNamespace(
                device=self.devices[index],
                eventType=self.nvmlEventTypeXidCriticalError,
                eventData=number,
            )
        )
