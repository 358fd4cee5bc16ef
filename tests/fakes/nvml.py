"""Stands in for the pynvml module: a driver with some devices, broken where a test wants it."""

# ruff: noqa: N802
from __future__ import annotations

from types import SimpleNamespace


class FakeNvml:
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, devices, broken="", lost=None):
        self._devices, self._broken, self._lost = devices, broken, lost

    def nvmlInit(self):
        if self._broken == "init":
            raise self.NVMLError("library not found")

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetCount(self):
        if self._broken == "count":
            raise self.NVMLError("driver not loaded")
        return self._devices

    def nvmlDeviceGetHandleByIndex(self, index):
        if index == self._lost:
            raise self.NVMLError("gpu is lost")
        return index

    def nvmlDeviceGetName(self, _handle):
        return b"Fake GPU"

    def nvmlDeviceGetMemoryInfo(self, _handle):
        return SimpleNamespace(total=24 << 30, free=20 << 30, used=4 << 30)

    def nvmlDeviceGetTemperature(self, _handle, _sensor):
        return 41

    def nvmlDeviceGetUtilizationRates(self, _handle):
        return SimpleNamespace(gpu=7, memory=3)
