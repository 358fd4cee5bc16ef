"""Several inference processes of one model: `inference`, `inference-1`, …, each on its device.

They share the model store, the remembered choice of `model use` and the settings' section.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from nodeapp.service.settings import InferenceSettings, Settings

FIRST = "inference"
_FURTHER = re.compile(rf"{FIRST}-([1-9]\d?)")


def replica_process(index: int) -> str:
    """The process of a replica, counted from 0."""
    return f"{FIRST}-{index}" if index else FIRST


def replica_index(process: str) -> int | None:
    """Which replica a process is; None: it is another process."""
    if process == FIRST:
        return 0
    found = _FURTHER.fullmatch(process)
    return int(found[1]) if found else None


def is_further_replica(process: str) -> bool:
    """One beside the first."""
    return bool(replica_index(process))


def replica_processes(processes: Sequence[str]) -> tuple[str, ...]:
    """Those of a node's processes that are replicas, the first one first."""
    return tuple(one for one in processes if replica_index(one) is not None)


def replica_count(inference: InferenceSettings) -> int:
    """How many the settings tell, >= 1; "auto" without devices is one."""
    if isinstance(inference.replicas, int):
        return inference.replicas
    return max(1, len(inference.devices))


def device_of(inference: InferenceSettings, index: int) -> str:
    """CUDA_VISIBLE_DEVICES of a replica; "": whatever the machine has."""
    return inference.devices[index] if index < len(inference.devices) else ""


def with_replica_processes(settings: Settings) -> Settings:
    """The same settings with a process for every replica, where the first one has one."""
    processes = settings.node.processes
    wanted = map(replica_process, range(replica_count(settings.inference)))
    missing = [one for one in wanted if one not in processes]
    if FIRST not in processes or not missing:
        return settings
    place = processes.index(FIRST) + 1
    node = msgspec.structs.replace(
        settings.node, processes=(*processes[:place], *missing, *processes[place:])
    )
    return msgspec.structs.replace(settings, node=node)
