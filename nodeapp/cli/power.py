"""Watts and tokens per second of this machine, measured where the hardware tells.

CPU packages tell their energy through RAPL (Linux powercap; root may read it), GPUs through the
inference process. What cannot be measured must be given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
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
    """What was found; None: not measurable here. `notes` say how."""

    watts: float | None
    tokens_per_second: float | None
    notes: tuple[str, ...]


async def measure(inference_socket: Path, seconds: float, powercap: Path = POWERCAP) -> Measured:
    """Watch the machine for a while, under whatever load it has now; 0: its speed only."""
    notes: list[str] = []
    before, energy_before = await _metrics(inference_socket, notes), read_energy(powercap)
    if seconds <= 0:
        return Measured(None, _speed(before, notes), tuple(notes))
    await asyncio.sleep(seconds)
    after, energy_after = await _metrics(inference_socket, []), read_energy(powercap)
    tokens = after.get(TOKENS, 0.0) - before.get(TOKENS, 0.0)
    watts = _package_watts(energy_before, energy_after, seconds, powercap)
    if watts is None:
        notes.append(f"no package energy below {powercap} that this user may read: give --watts")
    elif GPU_WATTS in after:
        watts += (before.get(GPU_WATTS, after[GPU_WATTS]) + after[GPU_WATTS]) / 2
    if watts is not None and tokens == 0:
        notes.append(
            f"{watts:.1f} W were measured while nothing was answered: the true cost is more"
        )
    return Measured(watts, _speed(after, notes), tuple(notes))


def _speed(metrics: Mapping[str, float], notes: list[str]) -> float | None:
    tokens, busy = metrics.get(TOKENS, 0.0), metrics.get(BUSY_SECONDS, 0.0)
    if tokens == 0 or busy <= 0:
        notes.append("inference has answered nothing yet: give --tokens-per-second")
        return None
    speed = tokens / busy
    notes.append(f"{speed:.1f} tokens/s: {tokens:.0f} tokens in {busy:.1f} s of computing")
    return speed


async def _metrics(socket: Path, notes: list[str]) -> Mapping[str, float]:
    try:
        return await read_metrics(socket)
    except Unavailable as error:
        notes.append(error.message)
        return {}


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
    if not both:
        return None
    joules = 0.0
    for name in both:
        spent = after[name] - before[name]
        if spent < 0:
            # The counter began again; its range is beside it.
            spent += int((powercap / name / "max_energy_range_uj").read_text())
        joules += spent / MICRO
    return joules / seconds
