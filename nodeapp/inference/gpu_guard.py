"""Watches the GPUs a model runs on: fewer answers at once when hot, quarantine when faulty.

A reading that does not come is a miss; MISSES in a row are a fault, because a driver that hangs
takes the decode thread with it sooner or later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from nodeapp.core.errors import Busy, Unavailable
from nodeapp.inference.gpu import Condition, Gpu, GpuInventory, Judgement, judge, slots_left
from nodeapp.inference.metrics import GpuMetrics
from nodeapp.inference.placement import Needs, needed_bytes
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger

LOOK_SECONDS = 5.0
MISSES = 3
SETTLE_SECONDS = 10.0
LEFT_OVER_BYTES = 1 << 30
"""Used by nobody: more than drivers keep for themselves."""
_log = get_logger(__name__)


class GpuGuard:
    """`visible` is CUDA_VISIBLE_DEVICES; CUDA counts devices by their place in it.

    `is_dealt`: it is this replica's share, without which it does not run; else nothing visible
    means the processor.
    """

    def __init__(
        self,
        inventory: GpuInventory,
        metrics: GpuMetrics,
        clock: Clock,
        *,
        visible: str = "",
        is_dealt: bool = False,
    ) -> None:
        self._inventory = inventory
        self._metrics = metrics
        self._clock = clock
        self._visible = visible
        self._is_dealt = is_dealt
        self._shown: tuple[int, ...] = ()
        self._used: tuple[int, ...] = ()
        self._judgements: tuple[Judgement, ...] = ()
        self._misses = 0

    @property
    def text(self) -> str:
        """What people should know of the devices in use, "" when nothing."""
        return "; ".join(
            f"gpu {index} {judgement.condition}: {judgement.reason}"
            for index, judgement in zip(self._used, self._judgements, strict=True)
            if judgement.reason
        )

    def slots(self, slots: int) -> int:
        """How many of so many requests the devices in use carry now."""
        return slots_left(slots, self._judgements)

    async def answering(self) -> int:
        """Devices of the machine that answer and are not faulty, in use or not.

        Raises:
            Unavailable: the driver does not answer in time, or does not fit its library.
        """
        found = await asyncio.to_thread(self._inventory.devices)
        return sum(1 for gpu in found if judge(gpu).condition is not Condition.FAULTY)

    def use(self, devices: tuple[int, ...]) -> None:
        """A model was loaded onto these (indices of the inventory)."""
        self._used = devices
        self._judgements = tuple(Judgement(Condition.GOOD, 1.0, "") for _ in devices)
        self._misses = 0

    async def usable(self, needs: Needs) -> tuple[Gpu, ...]:
        """Devices to load onto, waiting a little for memory of a killed process to come free.

        Raises:
            Unavailable: the driver does not answer, every device is faulty, or memory that
                would suffice is held by nobody.
        """
        until = self._clock.monotonic_seconds() + SETTLE_SECONDS
        while True:
            good = await self._good()
            held = _held_by_nobody(good, needed_bytes(needs))
            if not held:
                return good
            if self._clock.monotonic_seconds() >= until:
                raise Unavailable(f"{held}: reset the device or restart the machine")
            await asyncio.sleep(1.0)

    def ordinal(self, index: int) -> int:
        """CUDA's number of a device that `usable` returned."""
        return self._shown.index(index)

    async def run(self, quarantine: Callable[[str], None]) -> None:
        """Look again and again; `quarantine` is told why the devices are not to be used."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._used:
                continue
            await self._look()
            if any(one.condition is Condition.FAULTY for one in self._judgements):
                try:
                    quarantine(self.text)
                except Busy:
                    continue  # a change is under way: look again after it
                self._used, self._judgements = (), ()

    async def _look(self) -> None:
        try:
            found = {gpu.index: gpu for gpu in await asyncio.to_thread(self._inventory.devices)}
        except Unavailable as error:
            self._misses += 1
            if self._misses >= MISSES:
                fault = Judgement(Condition.FAULTY, 0.0, error.message)
                self._judgements = tuple(fault for _ in self._used)
            return
        self._misses = 0
        lost = Gpu(-1, "", fault="not there any more")
        before = self._judgements
        self._judgements = tuple(judge(found.get(index, lost)) for index in self._used)
        if [one.condition for one in before] != [one.condition for one in self._judgements]:
            _log.warning("gpu condition changed", detail=self.text or "good again")
        for gpu in found.values():
            self._metrics.set(gpu, judge(gpu))

    async def _good(self) -> tuple[Gpu, ...]:
        gpus = visible_devices(await asyncio.to_thread(self._inventory.devices), self._visible)
        self._shown = tuple(gpu.index for gpu in gpus)
        if self._is_dealt and not gpus:
            raise Unavailable(
                f"gpu {self._visible} is not there: restart the machine, or the node without it"
            )
        judged = [(gpu, judge(gpu)) for gpu in gpus]
        good = tuple(gpu for gpu, one in judged if one.condition is not Condition.FAULTY)
        if gpus and not good:
            why = "; ".join(f"gpu {gpu.index}: {one.reason}" for gpu, one in judged)
            raise Unavailable(f"every gpu is in quarantine: {why}")
        return good


def visible_devices(gpus: Sequence[Gpu], text: str) -> tuple[Gpu, ...]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: numbers or uuid prefixes, up to the first unknown.

    "" shows all.
    """
    if not text.strip():
        return tuple(gpus)
    shown: list[Gpu] = []
    for part in text.split(","):
        name = part.strip()
        found = [
            gpu
            for gpu in gpus
            if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
        ]
        if len(found) != 1 or found[0] in shown:
            break
        shown += found
    return tuple(shown)


def _held_by_nobody(gpus: Sequence[Gpu], needed: int) -> str:
    """A device that would do if its memory were not held by no process; "" when one does."""
    margin = 1 << 30
    if any(gpu.free_bytes >= needed + margin for gpu in gpus):
        return ""
    for gpu in gpus:
        is_enough = gpu.free_bytes + gpu.unaccounted_bytes >= needed + margin
        if gpu.unaccounted_bytes > LEFT_OVER_BYTES and is_enough:
            return (
                f"gpu {gpu.index} has {gpu.free_bytes} bytes free of {needed} needed, "
                f"{gpu.unaccounted_bytes} are held by no process"
            )
    return ""
