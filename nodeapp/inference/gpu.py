"""What a GPU says of itself and what to think of it; pure. "No GPU" is a normal answer.

Drivers lie at times: free memory over total, no temperature, clocks of 0. A number out of its
range counts as not said, and never makes a device look better than it is.
Source: NVIDIA's Xid documentation; NVML's clocks event reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

FATAL_XIDS = frozenset({48, 61, 62, 64, 74, 79, 92, 94, 95, 119, 120, 140, 143, 149, 154, 156, 158})
"""Uncorrectable memory, a halted or lost device, a broken link: needs a reset or a person."""
SLOWEST_SHARE = 0.25
COOL_SHARE = 0.9
"""Clocks at this share of their maximum or above are no throttling."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Someone who holds memory, in bytes."""

    pid: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. Bytes, degrees Celsius, percent, watts, MHz; None: not said.

    `slowdowns` are the reasons the driver gives for clocks below what was asked; `xids` are the
    critical errors since this process looks; `fault` is why the device could not be read.
    """

    index: int
    name: str
    uuid: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    temperature_celsius: int | None = None
    load_percent: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    slowdowns: tuple[str, ...] = ()
    xids: tuple[int, ...] = ()
    uncorrected_errors: int = 0
    processes: tuple[GpuProcess, ...] = ()
    fault: str = ""

    @property
    def unaccounted_bytes(self) -> int:
        """Used by no process that is shown: a driver's own, or left by a killed one."""
        shown = sum(process.used_bytes for process in self.processes)
        return max(0, self.total_bytes - self.free_bytes - shown)


class Condition(StrEnum):
    """What may be asked of a device."""

    GOOD = "good"
    SLOW = "slow"
    FAULTY = "faulty"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`share` of its speed, 0 to 1; 0 when faulty. `reason` is for people, "" when good."""

    condition: Condition
    share: float
    reason: str


class GpuInventory(Protocol):
    """Whoever can list devices."""

    def devices(self) -> tuple[Gpu, ...]:
        """The devices of this machine now; empty when there is none or no driver.

        Raises:
            Unavailable: the driver does not answer in time.
        """
        ...


def judge(gpu: Gpu) -> Judgement:
    """Good, slowed down by heat or power, or not to be used."""
    fault = gpu.fault or _fault_of(gpu)
    if fault:
        return Judgement(Condition.FAULTY, 0.0, fault)
    share = _clock_share(gpu)
    if gpu.slowdowns and share < COOL_SHARE:
        heat = f" at {gpu.temperature_celsius} °C" if gpu.temperature_celsius is not None else ""
        reason = f"{', '.join(gpu.slowdowns)}{heat}: {share:.0%} of its clock"
        return Judgement(Condition.SLOW, share, reason)
    return Judgement(Condition.GOOD, 1.0, "")


def slots_left(slots: int, judgements: Sequence[Judgement]) -> int:
    """Requests to answer at once on these devices; the slowest one is waited for by all."""
    share = min((judgement.share for judgement in judgements), default=1.0)
    return max(1, int(slots * share)) if share else 0


def _fault_of(gpu: Gpu) -> str:
    fatal = sorted(set(gpu.xids) & FATAL_XIDS)
    if fatal:
        return f"xid {', '.join(map(str, fatal))}: reset the device or restart the machine"
    if gpu.uncorrected_errors:
        return f"{gpu.uncorrected_errors} uncorrected memory errors: restart the machine"
    if gpu.total_bytes <= 0:
        return "says that it has no memory"
    return ""


def _clock_share(gpu: Gpu) -> float:
    """A slowdown without usable clocks counts as the worst one."""
    if not gpu.clock_mhz or not gpu.max_clock_mhz:
        return SLOWEST_SHARE
    return min(1.0, max(SLOWEST_SHARE, gpu.clock_mhz / gpu.max_clock_mhz))
