"""Where the marketplace's contracts stand; one JSON file, never hard-coded."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.core.ids import Address
from nodeapp.core.units import BlockNumber
from nodeapp.evm.abi import checksum


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chain id and contract addresses, EIP-55."""

    chain_id: int
    node_registry: Address
    model_registry: Address
    marketplace: Address
    proof_system: Address
    host_earnings: Address
    usdc: Address
    fab: Address
    first_block: BlockNumber = BlockNumber(0)
    """Where the marketplace was deployed; a new host reads events from there."""


def load_deployment(path: Path) -> Deployment:
    """Read a deployment file.

    Raises:
        NotFound: no such file.
        InvalidRequest: not a deployment, or an address is malformed.
    """
    try:
        deployment = msgspec.json.decode(path.read_bytes(), type=Deployment)
    except FileNotFoundError as error:
        raise NotFound(f"deployment file {path} does not exist") from error
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"deployment file {path}: {error}") from error
    addresses = {
        name: checksum(getattr(deployment, name))
        for name in deployment.__struct_fields__
        if name not in {"chain_id", "first_block"}
    }
    return msgspec.structs.replace(deployment, **addresses)


def save_deployment(path: Path, deployment: Deployment) -> None:
    """Write a deployment file; a reader sees the old or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(deployment), indent=2) + b"\n")
    draft.replace(path)
