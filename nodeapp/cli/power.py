"""Watts and tokens per second of this machine, measured where the hardware tells.

CPU packages tell their energy through RAPL (Linux powercap; root may read it), GPUs through the
inference process. What cannot be measured must be given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import Unavailable
from nodeapp.rpc.metrics import read_metrics

POWERCAP = Path("/sys/class/powercap")
PREFIX = "fabstir_inference_"
TOKENS = f"{PREFIX}tokens_predicted_total"
BUSY_SECONDS = f"{PREFIX}decode_step_seconds_sum"
GPU_WATTS = f"{PREFIX}gpu_power_watts"
MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found; None: not measurable here."""

    watts: float | None
    tokens_per_second: float | None
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Why something is None."""


async def measure(
    inference_sockets: Sequence[Path], seconds: float, powercap: Path = POWERCAP
) -> Measured:
    """Watch the machine for a while, under whatever load it has now; 0: its speed only.

    Replicas work at the same time: their speeds add up.
    """
    before, energy_before = await _all_metrics(inference_sockets), read_energy(powercap)
    await asyncio.sleep(seconds)
    after = await _all_metrics(inference_sockets)
    notes: list[str] = []
    missing: list[str] = []
    speeds = [speed for one in after if (speed := _speed(one))]
    if not speeds:
        missing.append("inference does not run or has answered nothing yet")
    else:
        tokens, busy = _total(after, TOKENS), _total(after, BUSY_SECONDS)
        notes.append(f"tokens/s: {tokens:.0f} in {busy:.1f} s of computing")
    watts = _package_watts(energy_before, read_energy(powercap), seconds, powercap)
    if watts is None:
        missing.append(f"no energy counter below {powercap} that this user may read")
    else:
        # Every replica tells of all devices.
        ends = [max((one.get(GPU_WATTS, 0.0) for one in end), default=0) for end in (before, after)]
        watts += sum(ends) / len(ends)
        if _total(after, TOKENS) == _total(before, TOKENS):
            notes.append(f"{watts:.1f} W while nothing was answered: under load it is more")
    return Measured(watts, sum(speeds) or None, tuple(notes), tuple(missing))


def _speed(metrics: Mapping[str, float]) -> float | None:
    tokens, busy = metrics.get(TOKENS, 0.0), metrics.get(BUSY_SECONDS, 0.0)
    return tokens / busy if tokens > 0 and busy > 0 else None


def _total(found: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(one.get(name, 0.0) for one in found)


async def _all_metrics(sockets: Sequence[Path]) -> list[Mapping[str, float]]:
    found: list[Mapping[str, float]] = []
    for socket in sockets:
        with contextlib.suppress(Unavailable):
            found.append(await read_metrics(socket))
    return found


def read_energy(powercap: Path) -> Mapping[str, int]:
    """Energy counters of the CPU packages, microjoules; without those that may not be read."""
    found: dict[str, int] = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it.
        if zone.name.count(":") != 1:
            continue
        try:
            found[zone.name] = int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            continue
    return found


def _package_watts(
    before: Mapping[str, int], after: Mapping[str, int], seconds: float, powercap: Path
) -> float | None:
    both = [name for name in before if name in after]
    if not both or seconds <= 0:
        return None
    joules = 0.0
    for name in both:
        spent = after[name] - before[name]
        if spent < 0:
            # The counter began again; its range is beside it.
            spent += int((powercap / name / "max_energy_range_uj").read_text())
        joules += spent / MICRO
    return joules / seconds
