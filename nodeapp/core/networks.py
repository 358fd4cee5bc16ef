"""Public parameters of the networks a host may earn on; contract addresses are settings, always."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEVELOPMENT_CHAIN = 31337
"""Anvil's own; every other chain has strangers on it."""


@dataclass(frozen=True, slots=True)
class Network:
    """What everybody knows of a chain.

    `block_seconds` is the usual time between blocks; `confirmations` is what a host should wait for
    before it believes a deposit, 1 = the block itself.
    """

    name: str
    chain_id: int
    block_seconds: float
    confirmations: int
    symbol: str
    is_test: bool


NETWORKS: Mapping[int, Network] = {
    network.chain_id: network
    for network in (
        Network("Base", 8453, 2.0, 5, "ETH", is_test=False),
        Network("Base Sepolia", 84532, 2.0, 3, "ETH", is_test=True),
        Network("opBNB testnet", 5611, 0.5, 10, "tBNB", is_test=True),
        Network("development chain", DEVELOPMENT_CHAIN, 1.0, 1, "ETH", is_test=True),
    )
}
"""By chain id. Sources: the networks' own documentation; confirmations are our advice."""


def network_name(chain_id: int) -> str:
    """For people: the network's name with its id."""
    known = NETWORKS.get(chain_id)
    return f"{known.name} ({chain_id})" if known else f"chain {chain_id}"
