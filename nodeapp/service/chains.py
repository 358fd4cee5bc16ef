"""Several chains: `[chain]` is the first, every `[chains.NAME]` has a process `chain-NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.settings import ChainSettings, Settings

FIRST = "chain"
_PREFIX = "chain-"


def process_of(name: str) -> str:
    """The process of `[chains.NAME]`."""
    return _PREFIX + name


def name_of(process: str) -> str:
    """NAME of a further chain's process; empty for any other process."""
    return process.removeprefix(_PREFIX) if process.startswith(_PREFIX) else ""


def chain_processes(processes: Sequence[str]) -> tuple[str, ...]:
    """Those of a node's processes that follow a chain, the first chain first."""
    return tuple(one for one in processes if one == FIRST or name_of(one))


def snapshots_of(directory: Path, process: str) -> Path:
    """Where the snapshots of a chain's journal lie below the directory of all."""
    return directory if process == FIRST else directory / process


def chain_sections(settings: Settings) -> dict[str, ChainSettings]:
    """Settings of every chain by the name of its section in the file."""
    return {
        FIRST: settings.chain,
        **{f"chains.{name}": section for name, section in settings.chains.items()},
    }


def chosen_process(settings: Settings) -> str:
    """The process of the chain that a command is about (`node.chain`)."""
    return process_of(settings.node.chain) if settings.node.chain else FIRST


def with_chosen_chain(settings: Settings) -> Settings:
    """The same with `settings.chain` being the one that a command is about; not for running a node.

    Raises:
        InvalidRequest: there is no such chain.
    """
    name = settings.node.chain
    if not name:
        return settings
    if name not in settings.chains:
        known = ", ".join(settings.chains) or "none"
        raise InvalidRequest(
            f"node.chain is {name!r}, but there is no [chains.{name}]; known: {known}"
        )
    return msgspec.structs.replace(settings, chain=settings.chains[name])


def with_chain_processes(settings: Settings) -> Settings:
    """The same settings with a process for every chain, where the first chain has one."""
    processes = settings.node.processes
    missing = [one for one in map(process_of, settings.chains) if one not in processes]
    if FIRST not in processes or not missing:
        return settings
    place = processes.index(FIRST) + 1
    node = msgspec.structs.replace(
        settings.node, processes=(*processes[:place], *missing, *processes[place:])
    )
    return msgspec.structs.replace(settings, node=node)
