"""How much of a model goes onto which GPUs, by its header and the free memory; pure.

Order: everything on the one device with most room; everything over several, split by their room;
fewer KV cells, down to one full request; then as many blocks as fit, the rest on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nodeapp.core.errors import Unavailable
from nodeapp.inference.gguf import GgufHeader
from nodeapp.inference.gpu import Gpu
from nodeapp.service.settings import InferenceSettings

MARGIN_BYTES = 512 << 20
MARGIN_SHARE = 0.05
BUFFER_BYTES = 64 << 20
MAX_BACK_OFFS = 4


@dataclass(frozen=True, slots=True)
class Needs:
    """What decides; cells and rows in tokens. `least_kv_tokens` is one full request."""

    header: GgufHeader
    kv_tokens: int
    least_kv_tokens: int
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Placement:
    """`gpu_layers` counts blocks, and one more for the output; `split` is one share a device.

    Devices are indices of the inventory; none: the processor does it all.
    """

    gpu_layers: int
    kv_tokens: int
    devices: tuple[int, ...] = ()
    split: tuple[float, ...] = ()


def needs_of(settings: InferenceSettings, header: GgufHeader) -> Needs:
    """What a model asks of devices under these settings."""
    return Needs(
        header=header,
        kv_tokens=settings.kv_tokens or 2 * settings.context_length,
        least_kv_tokens=min(settings.context_length, settings.kv_tokens or (1 << 62)),
        batch_tokens=settings.prefill_chunk_tokens + settings.max_sequences,
    )


def place(asked: int, needs: Needs, gpus: Sequence[Gpu]) -> Placement:
    """Choose devices, layers and cells.

    Args:
        asked: the operator's number of layers, >= 0 is taken as it is; -1: decide.
        needs: see there.
        gpus: those that may be used.
    """
    whole = needs.header.block_count + 1
    rooms = sorted(((_room(gpu, needs), gpu.index) for gpu in gpus), reverse=True)
    if asked == 0 or not rooms:
        return Placement(0, needs.kv_tokens)
    if asked > 0:
        return _spread(min(asked, whole), needs.kv_tokens, rooms)
    for kv_tokens in (needs.kv_tokens, needs.least_kv_tokens):
        size = _bytes(whole, kv_tokens, needs.header)
        if size <= rooms[0][0]:
            return Placement(whole, kv_tokens, (rooms[0][1],))
        if size <= sum(room for room, _ in rooms if room > 0):
            return _spread(whole, kv_tokens, rooms)
    layers = next(
        (
            count
            for count in range(whole - 1, 0, -1)
            if _bytes(count, needs.least_kv_tokens, needs.header)
            <= sum(room for room, _ in rooms if room > 0)
        ),
        0,
    )
    if not layers:
        return Placement(0, needs.kv_tokens)
    return _spread(layers, needs.least_kv_tokens, rooms)


def back_off(tried: Placement, needs: Needs) -> Placement:
    """Less than what just failed to load; in the end the processor alone.

    Raises:
        Unavailable: the processor alone failed too.
    """
    if tried.gpu_layers == 0:
        raise Unavailable("the model does not load without a gpu either")
    if tried.kv_tokens > needs.least_kv_tokens:
        return replace(tried, kv_tokens=needs.least_kv_tokens)
    fewer = tried.gpu_layers - max(1, tried.gpu_layers // MAX_BACK_OFFS)
    if fewer < 1:
        return Placement(0, needs.kv_tokens)
    return replace(tried, gpu_layers=fewer)


def takes_whole(gpu: Gpu, needs: Needs) -> bool:
    """A device has room for all blocks and all KV cells asked for, so nothing need be split."""
    whole = needs.header.block_count + 1
    return _bytes(whole, needs.kv_tokens, needs.header) <= _room(gpu, needs)


def needed_bytes(needs: Needs) -> int:
    """Of one device that takes all: weights, the fewest KV cells, buffers; without margin."""
    whole = needs.header.block_count + 1
    return _bytes(whole, needs.least_kv_tokens, needs.header) + _buffer_bytes(needs)


def _spread(layers: int, kv_tokens: int, rooms: Sequence[tuple[int, int]]) -> Placement:
    used = [(room, index) for room, index in rooms if room > 0] or [rooms[0]]
    if len(used) == 1:
        return Placement(layers, kv_tokens, (used[0][1],))
    by_index = sorted((index, room) for room, index in used)
    total = sum(room for _, room in by_index)
    return Placement(
        layers,
        kv_tokens,
        tuple(index for index, _ in by_index),
        tuple(room / total for _, room in by_index),
    )


def _bytes(layers: int, kv_tokens: int, header: GgufHeader) -> int:
    """Weights and KV cells of so many layers; the first one counted is the output."""
    blocks = max(0, layers - 1) if layers > header.block_count else layers
    weights = header.block_bytes * blocks // header.block_count
    if layers > header.block_count:
        weights += header.other_bytes
    return weights + blocks * kv_tokens * header.kv_bytes


def _room(gpu: Gpu, needs: Needs) -> int:
    """Free memory less the margin and what computing takes; a lie about free is cut to total."""
    margin = max(MARGIN_BYTES, int(gpu.total_bytes * MARGIN_SHARE))
    return min(gpu.free_bytes, gpu.total_bytes) - margin - _buffer_bytes(needs)


def _buffer_bytes(needs: Needs) -> int:
    """llama.cpp's compute buffer, from above: rows of logits and some rows of activations."""
    header = needs.header
    row = header.vocabulary_size + 16 * header.embedding_length
    return BUFFER_BYTES + 4 * needs.batch_tokens * row
