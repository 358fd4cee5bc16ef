"""Whether a host's entry in the node registry was touched in a range of blocks."""

from __future__ import annotations

from nodeapp.core.ids import Address
from nodeapp.core.units import BlockNumber
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.provider import Provider, quantity

MAX_SPAN = 1000
"""Blocks looked through at once; over more, reading the entry again is cheaper."""


class RegistryEvents:
    """Every event of the registry names the host in its first topic; which one does not matter."""

    def __init__(self, provider: Provider, deployment: Deployment) -> None:
        self._provider = provider
        self._registry = deployment.node_registry

    async def touched(self, first: BlockNumber, last: BlockNumber, host: Address) -> bool:
        """Whether these blocks hold an event of the host; True, too, when there are too many.

        Raises:
            Unavailable: no endpoint answered.
        """
        if last - first >= MAX_SPAN:
            return True
        logs = await self._provider.request(
            "eth_getLogs",
            [
                {
                    "address": self._registry,
                    "fromBlock": quantity(first),
                    "toBlock": quantity(last),
                    "topics": [None, "0x" + host.removeprefix("0x").lower().rjust(64, "0")],
                }
            ],
        )
        return bool(logs)
