"""GPU inventory by NVIDIA's management library. The only file importing pynvml."""

from __future__ import annotations

from typing import Any

from nodeapp.inference.gpu import Gpu


class NvmlInventory:
    """Asks the driver; `api` stands in for pynvml in tests."""

    def __init__(self, api: Any = None) -> None:  # noqa: ANN401  # pynvml has no stubs
        if api is None:
            import pynvml

            api = pynvml
        self._api: Any = api

    def devices(self) -> tuple[Gpu, ...]:
        """Devices now; () without driver, library or device. A device that fails is left out."""
        failed = self._api.NVMLError
        try:
            self._api.nvmlInit()
        except failed:
            return ()
        try:
            return tuple(
                gpu
                for index in range(int(self._api.nvmlDeviceGetCount()))
                if (gpu := self._device(index)) is not None
            )
        except failed:
            return ()
        finally:
            self._api.nvmlShutdown()

    def _device(self, index: int) -> Gpu | None:
        api = self._api
        try:
            handle = api.nvmlDeviceGetHandleByIndex(index)
            name = api.nvmlDeviceGetName(handle)
            memory = api.nvmlDeviceGetMemoryInfo(handle)
            return Gpu(
                index=index,
                name=name.decode() if isinstance(name, bytes) else str(name),
                total_bytes=int(memory.total),
                free_bytes=int(memory.free),
                temperature_celsius=int(
                    api.nvmlDeviceGetTemperature(handle, api.NVML_TEMPERATURE_GPU)
                ),
                load_percent=int(api.nvmlDeviceGetUtilizationRates(handle).gpu),
            )
        except api.NVMLError:
            return None
