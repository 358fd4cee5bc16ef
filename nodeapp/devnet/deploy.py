"""Put the marketplace on a local chain: all contracts in one batch of transactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec

from nodeapp.core.errors import Corrupt
from nodeapp.core.ids import Address, ModelId
from nodeapp.core.model_card import model_id
from nodeapp.evm.abi import Call, created_address, creation
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.calls import Calls
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.provider import Provider
from nodeapp.evm.transactions import Transactions

CALL_GAS = 400_000
CREATION_BASE_GAS = 1_000_000
CREATION_GAS_PER_BYTE = 250
"""200 for a stored byte, 16 for a sent one, and the constructor's own work in the base."""


@dataclass(frozen=True, slots=True)
class DevnetModel:
    """A model file to approve; `sha256` is lower-case hex of the GGUF file."""

    repo: str
    file_name: str
    sha256: str

    @property
    def model_id(self) -> ModelId:
        """Its id in the registry."""
        return model_id(self.repo, self.file_name)


@dataclass(frozen=True, slots=True)
class Rules:
    """The marketplace's constants; the defaults are the live network's."""

    fee_basis_points: int = 1000
    dispute_window_seconds: int = 30
    min_tokens_fee: int = 100


class _Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    abi: list[dict[str, Any]]
    bytecode: str
    compiler: str
    sourceSha256: str  # noqa: N815 (the artifact file's own name)


def _creation(contract: str, *arguments: object) -> Call:
    file = resources.files("nodeapp.devnet").joinpath("artifacts", f"{contract}.json")
    artifact = msgspec.json.decode(file.read_bytes(), type=_Artifact)
    return creation(contract, artifact.bytecode, artifact.abi, arguments)


def plan_addresses(deployer: Address, nonce: int, chain_id: int) -> Deployment:
    """Where the contracts will stand when they are created in the order of `creations`."""
    fab, usdc, models, nodes, proofs, earnings, marketplace = (
        created_address(deployer, nonce + place) for place in range(7)
    )
    return Deployment(
        chain_id=chain_id,
        node_registry=nodes,
        model_registry=models,
        marketplace=marketplace,
        proof_system=proofs,
        host_earnings=earnings,
        usdc=usdc,
        fab=fab,
    )


def creations(planned: Deployment, treasury: Address, rules: Rules) -> tuple[Call, ...]:
    """The seven creations, in the order that `plan_addresses` counts."""
    registries = (
        planned.node_registry,
        planned.model_registry,
        planned.proof_system,
        planned.host_earnings,
    )
    return (
        _creation("Erc20", "Fabstir", "FAB", 18),
        _creation("Erc20", "USD Coin", "USDC", 6),
        _creation("ModelRegistry"),
        _creation("NodeRegistry", planned.fab, planned.model_registry, treasury),
        _creation("ProofSystem"),
        _creation("HostEarnings"),
        _creation(
            "JobMarketplace",
            registries,
            planned.usdc,
            treasury,
            rules.fee_basis_points,
            rules.dispute_window_seconds,
            rules.min_tokens_fee,
        ),
    )


async def deploy(
    provider: Provider,
    deployer: Wallet,
    *,
    treasury: Address,
    models: Sequence[DevnetModel],
    rules: Rules = Rules(),
) -> Deployment:
    """Create and wire the contracts and approve the models; about one block.

    Args:
        provider: the chain.
        deployer: owner of the contracts; needs native coin.
        treasury: who may withdraw the fees.
        models: model files that hosts may sell.
        rules: the marketplace's constants.

    Raises:
        Reverted: a contract refused, e.g. a model named twice.
        Unavailable: the chain did not mine in time.
    """
    transactions = Transactions(provider)
    nonce = await transactions.nonce(deployer.address)
    planned = plan_addresses(deployer.address, nonce, provider.chain_id)
    calls = Calls(planned)
    batch = [
        (call, CREATION_BASE_GAS + CREATION_GAS_PER_BYTE * len(call.data))
        for call in creations(planned, treasury, rules)
    ]
    batch += [(call, CALL_GAS) for call in calls.authorize_marketplace()]
    batch += [
        (calls.add_trusted_model(m.repo, m.file_name, bytes.fromhex(m.sha256)), CALL_GAS)
        for m in models
    ]
    receipts = await transactions.send_batch(batch, deployer)
    created = receipts[6].contract
    if created is None or created.lower() != planned.marketplace.lower():
        raise Corrupt(f"marketplace stands at {created}, planned {planned.marketplace}")
    return planned
