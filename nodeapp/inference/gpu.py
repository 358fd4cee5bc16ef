"""Which GPUs there are and how many layers of a model fit. "No GPU" is a normal answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MARGIN_BYTES = 512 << 20
MARGIN_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device; memory in bytes, temperature in degrees Celsius, load in percent."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    temperature_celsius: int
    load_percent: int


class GpuInventory(Protocol):
    """Whoever can list devices."""

    def devices(self) -> tuple[Gpu, ...]:
        """The devices of this machine now; empty when there is none or no driver."""
        ...


def layers_that_fit(
    asked: int, *, blocks: int, model_bytes: int, kv_bytes: int, gpus: Sequence[Gpu]
) -> int:
    """How many layers to put on GPUs.

    Args:
        asked: the operator's number, >= 0 is taken as it is; -1: decide.
        blocks: transformer blocks of the model; the output layer counts as one more.
        model_bytes: size of the weights.
        kv_bytes: KV cache of all cells, all layers.
        gpus: what is there.

    Returns:
        0 to blocks + 1.
    """
    if asked >= 0:
        return min(asked, blocks + 1)
    margins = (max(MARGIN_BYTES, int(gpu.total_bytes * MARGIN_SHARE)) for gpu in gpus)
    room = sum(gpu.free_bytes for gpu in gpus) - sum(margins)
    per_layer = (model_bytes + kv_bytes) / (blocks + 1)
    return max(0, min(blocks + 1, int(room / per_layer)))
