"""The chains this host sells on: for each its money process, its listing and its offer.

The first chain is the one of `[chain]`; without it nothing is sold at all, any other may be down.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from nodeapp.core.errors import NodeError, NotFound
from nodeapp.network.host import Libp2pHost
from nodeapp.p2p.engines import Engines
from nodeapp.p2p.offer import Offer, OfferBook
from nodeapp.rpc.chain import ChainClient
from nodeapp.rpc.listing import ListingClient
from nodeapp.service.chains import FIRST, chain_processes
from nodeapp.service.lifecycle import Shell
from nodeapp.service.settings import P2pSettings


@dataclass(frozen=True, slots=True)
class Market:
    """One chain; `process` is who follows it."""

    process: str
    chain: ChainClient
    listing: ListingClient
    offers: OfferBook

    async def offer(self, host: Libp2pHost) -> Offer:
        """What is offered on it now; errors as of OfferBook.current."""
        return await self.offers.current(host.peer_id, host.addresses, host.sign)


class Markets:
    """Use as an async context manager."""

    def __init__(self, shell: Shell, settings: P2pSettings, inference: Engines) -> None:
        processes = chain_processes(shell.node.processes) or (FIRST,)
        found: list[Market] = []
        for process in processes:
            socket = shell.paths.socket(process)
            chain = ChainClient(socket)
            offers = OfferBook(settings, chain, inference, shell.clock)
            found.append(Market(process, chain, ListingClient(socket), offers))
        self.all = tuple(found)
        self.first, self.further = self.all[0], self.all[1:]
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for market in self.all:
            await self._resources.enter_async_context(market.chain)
            await self._resources.enter_async_context(market.listing)
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._resources.aclose()

    async def choose(self, host: Libp2pHost, chain_id: int) -> tuple[Offer, ChainClient]:
        """The offer on a chain, and who keeps its ledger.

        Raises:
            NotFound: this host sells nothing on that chain, or its process is down.
        """
        sold: list[int] = []
        for market in self.all:
            try:
                offer = await market.offer(host)
            except NodeError:
                continue  # Not sold there now.
            if offer.record.chain_id == chain_id:
                return offer, market.chain
            sold.append(offer.record.chain_id)
        known = ", ".join(map(str, sold)) or "none"
        raise NotFound(f"nothing is sold on chain {chain_id} here; chains of this host: {known}")
