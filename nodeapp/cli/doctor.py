"""fabstir-node doctor: what this machine and these settings lack, each with its remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from nodeapp.service.paths import Paths
    from nodeapp.service.settings import ChainSettings, InferenceSettings, UpdaterSettings

MIN_FREE_BYTES = 2 << 30


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Look at settings, disk, parts from set-up and the chain. Exit code 1 on a finding."""
    from nodeapp.cli.preflight import findings
    from nodeapp.service.chains import chain_sections
    from nodeapp.service.needs import remarks
    from nodeapp.service.paths import resolve_paths

    settings = settings_of(config, state_dir, flags)
    paths = resolve_paths(settings.node)
    found = [
        *findings(settings),
        *remarks(settings),
        *_disk(paths.state),
        *_replicas(settings.inference),
    ]
    found += [*_audit(paths.state), *_channel(settings.updater, paths)]
    for section, chain in chain_sections(settings).items():
        found += [*_rpc(section, chain.rpc_urls), *_depth(section, chain)]
    if as_json:
        sys.stdout.write(json.dumps({"findings": found}) + "\n")
    else:
        lines = [f"finding: {line}" for line in found] or ["no findings"]
        sys.stdout.write("\n".join(lines) + "\n")
    if found:
        raise typer.Exit(1)


def _disk(state: object) -> Iterator[str]:
    import shutil
    from pathlib import Path

    place = Path(str(state))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < MIN_FREE_BYTES:
        yield f"{place} has {free >> 20} MB free; the journal and results need room: free 2 GB"


def _channel(settings: UpdaterSettings, paths: Paths) -> Iterator[str]:
    from nodeapp.service.clock import SystemClock

    if settings.repository_url:
        # Reading its metadata takes a moment to import.
        from nodeapp.updater.updates import channel_warning

        if warning := channel_warning(settings, paths, SystemClock()):
            yield f"updates: {warning}"


def _audit(state: Path) -> Iterator[str]:
    from nodeapp.core.audit_chain import first_fault
    from nodeapp.core.errors import Unavailable
    from nodeapp.security.audit import read_chains
    from nodeapp.service.audit import audit_root

    try:
        fault = first_fault(read_chains(audit_root(state)))
    except Unavailable as error:
        yield error.message
        return
    if fault is not None:
        yield f"audit log: {fault.text()}; see docs/security.md"


def _replicas(inference: InferenceSettings) -> Iterator[str]:
    from nodeapp.core.errors import Unavailable
    from nodeapp.inference.gpu import Condition, judge
    from nodeapp.inference.nvml import NvmlInventory
    from nodeapp.service.replicas import replica_count

    count = replica_count(inference)
    try:
        gpus = NvmlInventory().devices()
    except Unavailable as error:
        yield f"gpu: {error.message}"
        return
    good = [gpu for gpu in gpus if judge(gpu).condition is not Condition.FAULTY]
    if gpus and inference.gpu_layers and count > max(1, len(good)):
        yield (
            f"inference.replicas is {count}, but {len(good)} of {len(gpus)} GPUs are healthy:"
            ' set "auto", or replicas share a GPU'
        )


def _rpc(section: str, urls: tuple[str, ...]) -> Iterator[str]:
    import socket
    from urllib.parse import urlsplit

    for url in urls:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme in {"https", "wss"} else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=3).close()
        except OSError as error:
            yield f"{section}.rpc_urls: {parts.hostname}:{port} is not reachable ({error})"


def _depth(section: str, chain: ChainSettings) -> Iterator[str]:
    from nodeapp.core.networks import NETWORKS, network_name

    network = NETWORKS.get(chain.chain_id)
    if network is not None and chain.confirmations < network.confirmations:
        yield (
            f"{section}.confirmations is {chain.confirmations}: on"
            f" {network_name(chain.chain_id)} wait for {network.confirmations} or more,"
            f" about {network.confirmations * network.block_seconds:g} s"
        )
    asked = [url for url in chain.rpc_urls if not url.startswith("ws")]
    if network is not None and not network.is_test and len(asked) < 2:
        yield f"{section}.rpc_urls has one endpoint: with a second one a lie of it is noticed"
