"""What the marketplace's model registry says of the models kept here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nodeapp.core.errors import NotFound, Unavailable
from nodeapp.core.model_card import model_id
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.provider import Provider
from nodeapp.inference.catalogue import CatalogueEntry
from nodeapp.service.settings import ChainSettings

APPROVED = "approved"
NOT_APPROVED = "not approved"
DIFFERS = "hash differs"
NO_CHAIN = "no chain configured"


async def registry_verdicts(chain: ChainSettings, entries: Sequence[CatalogueEntry]) -> list[str]:
    """One text an entry: one of the constants, or that the chain was out of reach."""
    if not chain.deployment_file:
        return [NO_CHAIN] * len(entries)
    deployment = load_deployment(Path(chain.deployment_file))
    async with Provider(chain.rpc_urls, chain_id=chain.chain_id) as provider:
        contracts = Contracts(provider, deployment)
        return [await verdict_of(contracts, entry) for entry in entries]


async def verdict_of(contracts: Contracts, entry: CatalogueEntry) -> str:
    """One entry against its model id."""
    try:
        found = await contracts.model(model_id(entry.repo, entry.file_name))
    except NotFound:
        return NOT_APPROVED
    except Unavailable as error:
        return f"unknown, chain out of reach ({error.message})"
    if found.sha256.hex() != entry.sha256:
        return f"{DIFFERS}: the registry has {found.sha256.hex()}"
    return APPROVED if found.active else NOT_APPROVED
