"""GPU inventory by NVIDIA's management library. The only file importing pynvml.

Every question runs in a thread of its own with a deadline: a driver in trouble hangs in the
kernel, where nothing can be cancelled. While one question hangs, the next ones fail at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from nodeapp.core.errors import Unavailable
from nodeapp.inference.gpu import Gpu, GpuProcess

SECONDS = 5.0
_MAX_TEMPERATURE = 150
_MAX_NAME = 96
_VERSION_MISMATCH = 18
"""NVML_ERROR_LIB_RM_VERSION_MISMATCH: updated under a running kernel module."""


class NvmlInventory:
    """Asks the driver; `api` stands in for pynvml in tests."""

    def __init__(self, api: Any = None, *, seconds: float = SECONDS) -> None:  # noqa: ANN401  # pynvml has no stubs
        if api is None:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                import pynvml

            api = pynvml
        self._api: Any = api
        self._seconds = seconds
        self._hanging: threading.Thread | None = None
        self._session: _Session | None = None

    def devices(self) -> tuple[Gpu, ...]:
        """Devices now; () without driver, library or device. One that fails carries `fault`.

        Raises:
            Unavailable: the driver does not answer inside the deadline, or still not.
        """
        return self._bounded(self._devices)

    def _devices(self) -> tuple[Gpu, ...]:
        try:
            if self._session is None:
                self._session = _Session(self._api)
            return self._session.devices()
        except self._api.NVMLError as error:
            if getattr(error, "value", None) == _VERSION_MISMATCH:
                raise Unavailable(
                    "the gpu driver and its library have different versions: restart the machine"
                ) from error
            # No driver, or it was reloaded under us: the next question begins anew.
            self._session = None
            return ()

    def _bounded(self, ask: Callable[[], tuple[Gpu, ...]]) -> tuple[Gpu, ...]:
        if self._hanging is not None and self._hanging.is_alive():
            raise Unavailable("the gpu driver still does not answer: restart the machine")
        answers: queue.SimpleQueue[tuple[Gpu, ...] | BaseException] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put(ask())
            except BaseException as error:  # noqa: BLE001  # handed to the asker below
                answers.put(error)

        thread = threading.Thread(target=run, name="nvml", daemon=True)
        thread.start()
        try:
            answer = answers.get(timeout=self._seconds)
        except queue.Empty as error:
            self._hanging = thread
            raise Unavailable(
                f"the gpu driver does not answer inside {self._seconds:g} s"
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Session:
    """From nvmlInit on: events are only told to who is registered."""

    def __init__(self, api: Any) -> None:  # noqa: ANN401  # pynvml has no stubs
        self._api = api
        api.nvmlInit()
        self._xids: dict[str, list[int]] = {}
        self._events = self._register()

    def devices(self) -> tuple[Gpu, ...]:
        self._collect_events()
        return tuple(self._device(index) for index in range(int(self._api.nvmlDeviceGetCount())))

    def _device(self, index: int) -> Gpu:
        api = self._api
        try:
            handle = api.nvmlDeviceGetHandleByIndex(index)
            memory = api.nvmlDeviceGetMemoryInfo(handle)
        except api.NVMLError as error:
            return Gpu(index, "unknown", fault=f"driver: {str(error)[:200]}")
        uuid = _text(self._said(api.nvmlDeviceGetUUID, handle))
        reasons = self._said(api.nvmlDeviceGetCurrentClocksEventReasons, handle)
        return Gpu(
            index=index,
            name=_text(self._said(api.nvmlDeviceGetName, handle)) or "unknown",
            uuid=uuid,
            total_bytes=int(memory.total),
            free_bytes=max(0, min(int(memory.free), int(memory.total))),
            temperature_celsius=_within(
                self._said(api.nvmlDeviceGetTemperature, handle, api.NVML_TEMPERATURE_GPU),
                _MAX_TEMPERATURE,
            ),
            load_percent=_within(
                getattr(self._said(api.nvmlDeviceGetUtilizationRates, handle), "gpu", None), 100
            ),
            power_watts=_watts(self._said(api.nvmlDeviceGetPowerUsage, handle)),
            power_limit_watts=_watts(self._said(api.nvmlDeviceGetEnforcedPowerLimit, handle)),
            clock_mhz=_within(
                self._said(api.nvmlDeviceGetClockInfo, handle, api.NVML_CLOCK_SM), 20_000
            ),
            max_clock_mhz=_within(
                self._said(api.nvmlDeviceGetMaxClockInfo, handle, api.NVML_CLOCK_SM), 20_000
            ),
            slowdowns=self._slowdowns(reasons),
            xids=tuple(self._xids.get(uuid, ())),
            uncorrected_errors=self._uncorrected(handle),
            processes=self._processes(handle),
        )

    def _said(self, ask: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401  # see _Session
        """The answer, or None: many devices do not support every question."""
        try:
            return ask(*arguments)
        except self._api.NVMLError:
            return None

    def _slowdowns(self, reasons: object) -> tuple[str, ...]:
        api = self._api
        named = {
            api.nvmlClocksEventReasonHwThermalSlowdown: "hot (hardware)",
            api.nvmlClocksEventReasonSwThermalSlowdown: "hot (driver)",
            api.nvmlClocksEventReasonHwSlowdown: "slowed by hardware",
            api.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
            api.nvmlClocksEventReasonSwPowerCap: "power limit",
        }
        if not isinstance(reasons, int):
            return ()
        return tuple(name for bit, name in named.items() if reasons & bit)

    def _uncorrected(self, handle: object) -> int:
        api = self._api
        found = self._said(
            api.nvmlDeviceGetTotalEccErrors,
            handle,
            api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            api.NVML_VOLATILE_ECC,
        )
        return max(0, int(found)) if isinstance(found, int) else 0

    def _processes(self, handle: object) -> tuple[GpuProcess, ...]:
        found = self._said(self._api.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        return tuple(
            GpuProcess(int(one.pid), int(one.usedGpuMemory or 0)) for one in list(found)[:256]
        )

    def _register(self) -> Any:  # noqa: ANN401  # see _Session
        api = self._api
        wanted = api.nvmlEventTypeXidCriticalError | api.nvmlEventTypeDoubleBitEccError
        try:
            events = api.nvmlEventSetCreate()
        except api.NVMLError:
            return None
        for index in range(int(api.nvmlDeviceGetCount())):
            handle = self._said(api.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                self._said(api.nvmlDeviceRegisterEvents, handle, wanted, events)
        return events

    def _collect_events(self) -> None:
        """What has come since the last look; never waits. At most 64, a storm is one too."""
        if self._events is None:
            return
        for _ in range(64):
            event = self._said(self._api.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            uuid = _text(self._said(self._api.nvmlDeviceGetUUID, event.device))
            number = int(event.eventData)
            if event.eventType == self._api.nvmlEventTypeDoubleBitEccError:
                number = 48
            known = self._xids.setdefault(uuid, [])
            if number not in known:
                known.append(number)


def _text(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return text[:_MAX_NAME]


def _within(value: object, highest: int) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= highest else None


def _watts(milliwatts: object) -> float | None:
    found = _within(milliwatts, 10_000_000)
    return found / 1000 if found is not None else None
