"""What can be known to be wrong before anything is started; each finding says what to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from nodeapp.core.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from nodeapp.service.chains import chain_sections
from nodeapp.service.config import (
    CREDENTIAL_PREFIX,
    CREDENTIALS_VARIABLE,
    credential_path,
    environment_value,
)
from nodeapp.service.needs import NO_PROOFS, needs
from nodeapp.service.paths import resolve_paths
from nodeapp.service.replicas import replica_count
from nodeapp.service.settings import ChainSettings, InferenceSettings, Settings

_MULTIADDRESS = re.compile(r"^/ip4/(?P<host>[0-9.]+)/tcp/(?P<port>\d+)")


def check_settings(settings: Settings) -> None:
    """Raise the first finding.

    Raises:
        InvalidRequest: with the settings key and what to do.
    """
    for finding in findings(settings, is_start=True):
        raise InvalidRequest(finding)


def findings(settings: Settings, *, is_start: bool = False) -> Iterator[str]:
    """Every finding, one line each.

    Args:
        settings: all of them.
        is_start: for the node that starts here and now. Else credentials that systemd hands to
            its unit only are taken as they are.
    """
    processes = settings.node.processes
    if "chain" in processes:
        yield from _chains(chain_sections(settings), is_start=is_start)
    yield from (need.text() for need in needs(settings))
    if "inference" in processes:
        yield from _model(settings)
        yield from _replicas(settings.inference)
    if "prover" in processes:
        yield from _proof_keys(settings)
    if not is_start and _runs(settings):
        return  # it listens on its own ports
    if "p2p" in processes:
        place = _MULTIADDRESS.match(settings.p2p.listen)
        if place is None:
            yield f"p2p.listen {settings.p2p.listen!r} is not /ip4/ADDRESS/tcp/PORT"
        else:
            yield from _port("p2p.listen", place["host"], int(place["port"]))
    if "s5" in processes:
        yield from _port("s5.listen_port", settings.s5.listen_host, settings.s5.listen_port)


def _runs(settings: Settings) -> bool:
    """A node runs with these directories."""
    from nodeapp.service.supervisor_client import SupervisorClient
    from nodeapp.service.supervisord import supervisor_socket

    try:
        return bool(SupervisorClient(supervisor_socket(resolve_paths(settings.node))).programs())
    except Unavailable:
        return False


def _chains(chains: Mapping[str, ChainSettings], *, is_start: bool) -> Iterator[str]:
    first_with: dict[int, str] = {}
    for section, chain in chains.items():
        if not chain.signer_url:
            yield from _secret(f"{section}.keystore_file", chain.keystore_file, is_start=is_start)
            yield from _secret(f"{section}.password_file", chain.password_file, is_start=is_start)
        yield from _files((f"{section}.deployment_file", chain.deployment_file))
        yield from _chain_id(section, chain)
        other = first_with.setdefault(chain.chain_id, section)
        if other != section:
            yield f"{section}.chain_id is {chain.chain_id}, which [{other}] has already"


def _chain_id(section: str, chain: ChainSettings) -> Iterator[str]:
    from nodeapp.evm.deployment import load_deployment

    path = Path(chain.deployment_file)
    if not path.is_file():
        return
    deployed = load_deployment(path).chain_id
    if deployed != chain.chain_id:
        yield (
            f"{section}.chain_id is {chain.chain_id}, but {path} is for chain {deployed};"
            " set the chain id of your network, or its deployment file"
        )


def _model(settings: Settings) -> Iterator[str]:
    """The model is there, or would be fetched by the start."""
    inference = settings.inference
    if inference.model_path:
        yield from _files(("inference.model_path", inference.model_path))
    elif inference.model:
        from nodeapp.inference.adding import configured_addition
        from nodeapp.inference.model_store import model_store

        store = model_store(inference, resolve_paths(settings.node))
        try:
            if not inference.model_source or store.has(inference.model):
                store.find(inference.model)
            elif not inference.model_source.startswith("hub:") or inference.hub_url:
                configured_addition(inference, settings.p2p.portal_url, now=0)
        except (NotFound, Corrupt, InvalidRequest) as error:
            yield f"inference.model: {error.message}"


def _proof_keys(settings: Settings) -> Iterator[str]:
    """The prover's keys are there, or would be made by the start."""
    from nodeapp.prover import EZKL_MISSING
    from nodeapp.prover.keys import are_made_at_start, check_keys, keys_place

    prover = settings.prover
    if find_spec("ezkl") is None:
        yield EZKL_MISSING
        return
    try:
        check_keys(prover, keys_place(prover, resolve_paths(settings.node).cache))
    except InvalidRequest as error:
        yield f"prover.allow_test_srs: {error.message}"
    except Unavailable as error:
        if not are_made_at_start(prover):
            yield f"prover.srs_source: {error.message}; {NO_PROOFS}"


def _replicas(inference: InferenceSettings) -> Iterator[str]:
    count, devices = replica_count(inference), len(inference.devices)
    if devices not in (0, count):
        yield (
            f"inference.devices names {devices} for {count} replicas: give one for each, or none"
        )
    if inference.pin_threads and count > 1:
        yield (
            f"inference.pin_threads would bind {count} replicas to the same cores:"
            " set it to false, or inference.replicas to 1"
        )


def _secret(key: str, value: str, *, is_start: bool) -> Iterator[str]:
    """A file, or a credential of the unit's."""
    is_credential = value.startswith(CREDENTIAL_PREFIX)
    if is_credential and not is_start and not environment_value(CREDENTIALS_VARIABLE):
        return
    try:
        yield from _files((key, str(credential_path(value)) if is_credential else value))
    except InvalidRequest as error:
        yield f"{key}: {error.message}"


def _files(*named: tuple[str, str]) -> Iterator[str]:
    for key, value in named:
        if not value:
            yield f"{key} is not set; `fabstir-node config init` writes a file with what to decide"
            continue
        try:
            is_there = Path(value).is_file()
        except PermissionError:
            yield f"{key}: {value} may not be seen by this account; ask as root or as the node's"
            continue
        if not is_there:
            yield f"{key}: {value} does not exist"


def _port(key: str, host: str, port: int) -> Iterator[str]:
    if not 0 <= port <= 65535:
        yield f"{key}: {port} is not a port"
        return
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            yield f"{key}: {host}:{port} cannot be used ({error.strerror}); choose another port"
