"""Which ABI generation stands at the configured addresses, and whether they belong together.

v1 wants a signature with every claim and prices per host; v2 prices per model and asset; v3 adds
limits for delegates. A host does the same calls on v2 and v3. v1 is refused.
"""

from __future__ import annotations

import enum

from nodeapp.core.errors import Rejected
from nodeapp.core.ids import Address
from nodeapp.evm.abi import ContractAbi, checksum, load_abi
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Provider
from nodeapp.evm.rpc import as_bytes

_MARKETPLACE = load_abi("JobMarketplace")
_NODES = load_abi("NodeRegistry")
_ZERO = Address("0x" + "0" * 40)
_POINTERS = (
    ("marketplace", _MARKETPLACE, "nodeRegistry", "node_registry"),
    ("marketplace", _MARKETPLACE, "proofSystem", "proof_system"),
    ("marketplace", _MARKETPLACE, "hostEarnings", "host_earnings"),
    ("marketplace", _MARKETPLACE, "usdcAddress", "usdc"),
    ("node_registry", _NODES, "modelRegistry", "model_registry"),
    ("node_registry", _NODES, "fabToken", "fab"),
)
"""Contract, its getter, and which address of the deployment it must tell."""


class Generation(enum.StrEnum):
    """ABI generations a host can work with; AUTO takes what is found."""

    AUTO = "auto"
    V2 = "v2"
    V3 = "v3"


async def check_deployment(
    provider: Provider, deployment: Deployment, wanted: Generation = Generation.AUTO
) -> Generation:
    """Find the generation and make sure that the addresses are those of one marketplace.

    Raises:
        Rejected: no contract at an address, contracts that point elsewhere, another generation.
        Unavailable: no endpoint answered.
    """
    for name in deployment.__struct_fields__:
        address = getattr(deployment, name)
        if isinstance(address, str) and not await provider.has_code(Address(address)):
            raise Rejected(f"no contract stands at {name} {address} on chain {deployment.chain_id}")
    found = await _generation(provider, deployment)
    if wanted is not Generation.AUTO and found is not wanted:
        raise Rejected(
            f"the marketplace {deployment.marketplace} speaks abi {found}, chain.abi is"
            f' "{wanted}": set it to "auto" or "{found}", or correct the deployment file'
        )
    for contract, abi, getter, name in _POINTERS:
        holder, expected = getattr(deployment, contract), getattr(deployment, name)
        told = await _address(provider, holder, abi, getter)
        if told != expected:
            raise Rejected(
                f"{contract} {holder} uses {name} {told}, expected {expected}:"
                " correct the deployment file"
            )
    return found


async def _generation(provider: Provider, deployment: Deployment) -> Generation:
    marketplace = deployment.marketplace
    if not await _answers(provider, marketplace, "MIN_PROOF_TIMEOUT"):
        if await _answers(provider, marketplace, "nodeRegistry"):
            raise Rejected(
                f"the marketplace {marketplace} speaks an abi older than v2 (it has no"
                " MIN_PROOF_TIMEOUT): this node claims without signatures and needs v2 or v3;"
                " set the deployment file to a newer marketplace"
            )
        raise Rejected(
            f"the contract {marketplace} is no marketplace, or one with an abi older than v2"
            " (neither MIN_PROOF_TIMEOUT nor nodeRegistry answers): correct the deployment file"
        )
    has_limits = await _answers(provider, marketplace, "delegateConfigs", _ZERO, _ZERO)
    return Generation.V3 if has_limits else Generation.V2


async def _answers(
    provider: Provider, contract: Address, function: str, *arguments: object
) -> bool:
    """Whether the function is there: it tells at least one word."""
    data = "0x" + _MARKETPLACE.functions[function].encode(arguments).hex()
    try:
        answer = await provider.call(
            "eth_call", [{"to": contract, "data": data}, "latest"], as_bytes
        )
    except Reverted:
        return False
    return len(answer) >= 32


async def _address(
    provider: Provider, contract: Address, abi: ContractAbi, getter: str
) -> Address | None:
    call = {"to": contract, "data": "0x" + abi.functions[getter].encode(()).hex()}
    try:
        answer = await provider.call("eth_call", [call, "latest"], as_bytes)
    except Reverted:
        return None
    return checksum("0x" + answer[12:].hex()) if len(answer) == 32 else None
