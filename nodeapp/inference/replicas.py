"""Which GPUs the replicas of the inference process get; decided once, when the node starts.

A machine whose driver or model file is in trouble is left to the inference process, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from nodeapp.core.errors import NodeError
from nodeapp.inference.gguf import read_header
from nodeapp.inference.gpu import Condition, Gpu, GpuInventory, judge
from nodeapp.inference.gpu_guard import visible_devices
from nodeapp.inference.model_choice import ModelChoice
from nodeapp.inference.model_store import model_store
from nodeapp.inference.placement import Needs, needs_of, takes_whole
from nodeapp.service.paths import resolve_paths
from nodeapp.service.replicas import FIRST, with_replica_processes
from nodeapp.service.settings import InferenceSettings, Settings


def with_devices(settings: Settings, inventory: GpuInventory, visible: str) -> Settings:
    """The same settings with a device for every replica, and a process for each.

    Args:
        settings: as loaded; devices that they name are kept.
        inventory: the GPUs of this machine.
        visible: CUDA_VISIBLE_DEVICES.
    """
    own = settings.inference
    if FIRST not in settings.node.processes or own.devices or not own.gpu_layers:
        return settings
    try:
        gpus = [
            gpu
            for gpu in visible_devices(inventory.devices(), visible)
            if judge(gpu).condition is not Condition.FAULTY
        ]
        devices = choose_devices(own, gpus, lambda: _needs(settings))
    except (NodeError, OSError):
        return settings
    dealt = msgspec.structs.replace(own, devices=devices)
    return with_replica_processes(msgspec.structs.replace(settings, inference=dealt))


def choose_devices(
    own: InferenceSettings, gpus: Sequence[Gpu], needs: Callable[[], Needs]
) -> tuple[str, ...]:
    """CUDA_VISIBLE_DEVICES of each replica; () leaves one process with the whole machine.

    Args:
        own: how many replicas are asked for.
        gpus: those that may be used.
        needs: reads what the model needs; asked only when there is a choice.
    """
    if own.replicas == "auto":
        asked = needs() if len(gpus) > 1 else None
        fitting = [gpu for gpu in gpus if asked is not None and takes_whole(gpu, asked)]
        return tuple(map(_name, fitting)) if len(fitting) > 1 else ()
    if own.replicas == 1 or not gpus:
        return ()
    # Dealt in turn: more devices than replicas are shared out, fewer are shared.
    return tuple(
        ",".join(map(_name, gpus[index :: own.replicas] or [gpus[index % len(gpus)]]))
        for index in range(own.replicas)
    )


def _name(gpu: Gpu) -> str:
    """CUDA may count devices in another order than the driver: the uuid says which is meant."""
    return gpu.uuid if gpu.uuid.startswith("GPU-") else str(gpu.index)


def _needs(settings: Settings) -> Needs:
    paths = resolve_paths(settings.node)
    store = model_store(settings.inference, paths)
    memory = paths.process_state(FIRST) / "chosen.json"
    model = ModelChoice(settings.inference, store, memory).first()
    return needs_of(settings.inference, read_header(model.path))
