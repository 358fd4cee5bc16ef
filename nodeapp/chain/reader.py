"""The chain process for a verb that only reads while the node is down (`--read-only`).

Rules of this file: no journal is made and none is noted beside the key, or a look from the wrong
state directory would bind the wallet to it; nothing is signed and nothing is sent.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from aiohttp import web

from nodeapp.chain import listing_reader, statement
from nodeapp.chain.connection import Connection, first_contact
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.listing import settings_wish
from nodeapp.chain.listing_reader import ListingReader
from nodeapp.chain.parts import Builder
from nodeapp.chain.signing import open_signer
from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.listing import Listing
from nodeapp.evm.contracts import Contracts
from nodeapp.service.lifecycle import Shell
from nodeapp.service.settings import ChainSettings
from nodeapp.service.single import ONLY_READS
from nodeapp.store.marker import Marker


class ChainReader:
    """Process of lifecycle.run_service."""

    def __init__(self, shell: Shell, settings: ChainSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._resources = AsyncExitStack()
        self._reader: ListingReader | None = None
        self._ledger: Ledger | None = None
        self._trouble = "starting"
        self._books_trouble = ""

    def routes(self) -> Sequence[web.RouteDef]:
        """What host status, plans, the market and the statement are made of."""
        return [*listing_reader.routes(self.reader), *statement.routes(self.books)]

    async def start(self, tasks: asyncio.TaskGroup) -> None:  # noqa: ARG002  # Process has it
        """Open the wallet, the journal if there is one, and the endpoints."""
        builder = Builder(self._shell, self._settings, self._resources)
        deployment = await builder.deployment()
        key = await open_signer(self._settings, self._resources)
        wish = partial(
            settings_wish, self._settings, usdc=deployment.usdc, public_key=key.public_key
        )
        # A misspelt price ends the start, not the first look at the chain.
        wish(Listing())
        await self._open_books(builder.marker(key.address), key.address)
        connection = await self._resources.enter_async_context(
            Connection(self._settings, self._shell.clock, self._shell.metrics)
        )
        contracts = Contracts(connection.provider, deployment)
        await first_contact(connection, contracts, self._tell)
        self._reader = ListingReader(contracts, key.address, key.public_key, wish)

    def readiness(self) -> str:
        """What it waits for."""
        return self._trouble if self._reader is None else f"{self._reader.host}, {ONLY_READS}"

    async def drain(self) -> None:
        """Nothing is under way that cannot be asked again."""

    async def stop(self) -> None:
        """Close journal and clients."""
        await self._resources.aclose()

    def reader(self) -> ListingReader:
        """Who answers about the listing.

        Raises:
            Unavailable: still starting.
        """
        if self._reader is None:
            raise Unavailable("chain is starting")
        return self._reader

    def books(self) -> tuple[Ledger, Contracts, Address]:
        """What a statement is made of.

        Raises:
            Rejected: the account's journal is not on this state directory.
        """
        reader = self.reader()
        if self._ledger is None:
            raise Rejected(self._books_trouble)
        return self._ledger, reader.contracts, reader.host

    async def _open_books(self, marker: Path, owner: Address) -> None:
        journal = self._shell.paths.journal_of(self._shell.process)
        if not await asyncio.to_thread(journal.exists):
            self._books_trouble = await asyncio.to_thread(Marker(marker).trouble, journal, owner)
            if self._books_trouble:
                return
            # Nothing was ever booked: empty books, which vanish again.
            directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="fabstir-books-"))
            self._resources.callback(shutil.rmtree, directory)
            journal, marker = directory / statement.JOURNAL, directory / "marker"
        self._ledger = await Ledger.open(journal, owner=owner, marker=marker, note=False)
        self._resources.push_async_callback(self._ledger.close)

    def _tell(self, trouble: str) -> None:
        self._trouble = trouble
