"""The statement out of the ledger: archived sessions page by page, then what is still under way.

Read-only. A backup of the journal gives the same lines without chain or node.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from nodeapp.chain.checkpoints import job_of
from nodeapp.chain.ledger import Ledger
from nodeapp.core.ids import Address
from nodeapp.core.outbox import TransactionDropped, TransactionMined
from nodeapp.core.session import Session
from nodeapp.core.statement import session_line, transaction_lines
from nodeapp.evm.calls import NATIVE
from nodeapp.evm.contracts import Contracts
from nodeapp.service.server import endpoint
from nodeapp.store.backups import owner_of, verify_backup
from nodeapp.wire import ipc_statement as wire

PAGE_SESSIONS = 500
JOURNAL = "journal.db"
Transaction = TypeVar("Transaction", TransactionMined, TransactionDropped)


def routes(
    books: Callable[[], tuple[Ledger, Contracts, Address]],
) -> Sequence[web.RouteDef]:
    """POST /v1/statement; `books` raises Unavailable while the process starts."""

    async def page(request: wire.StatementRequest) -> wire.StatementReply:
        ledger, contracts, host = books()
        return wire.encode_page(await statement_page(ledger, request, contracts, host))

    return [web.post("/v1/statement", endpoint(wire.StatementRequest, page))]


async def statement_page(
    ledger: Ledger, request: wire.StatementRequest, contracts: Contracts | None, host: Address
) -> wire.StatementPage:
    """One page.

    Args:
        ledger: the books.
        request: which page.
        contracts: None: the last page comes without what the chain says.
        host: the account.

    Raises:
        Unavailable: no endpoint answered.
    """
    archived = await ledger.archive_after(request.place, PAGE_SESSIONS)
    failed = _by_job(ledger.failed)
    if archived:
        lines = tuple(
            session_line(one.session, one.transactions, _failed_of(one.session, failed))
            for _, one in archived
        )
        return wire.StatementPage(lines, next_place=archived[-1][0])
    mined = _by_job(ledger.mined.values())
    lines = (
        *(session_line(one, ()) for one in ledger.parked),
        *(
            session_line(one, mined.get(one.terms.job_id, ()), _failed_of(one, failed))
            for _, one in sorted(ledger.sessions.items())
        ),
    )
    others = transaction_lines(mined.get(None, ()), failed.get(None, ()))
    facts = None if contracts is None else await _facts(ledger, contracts, host)
    return wire.StatementPage(lines, wire.LAST_PAGE, others, facts)


async def backup_pages(backup: Path) -> list[wire.StatementPage]:
    """Every page out of a verified backup; the file itself is not touched.

    Raises:
        NotFound, Corrupt: see verify_backup.
    """
    verify_backup(backup)
    owner = Address(owner_of(backup))
    directory = await asyncio.to_thread(_copied, backup)
    try:
        ledger = await Ledger.open(directory / JOURNAL, owner=owner, marker=directory / "marker")
        try:
            return await _all_pages(ledger, owner)
        finally:
            await ledger.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, directory)


def _copied(backup: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="fabstir-statement-"))
    shutil.copyfile(backup, directory / JOURNAL)
    return directory


async def _all_pages(ledger: Ledger, owner: Address) -> list[wire.StatementPage]:
    pages: list[wire.StatementPage] = []
    place = 0
    while place != wire.LAST_PAGE:
        page = await statement_page(ledger, wire.StatementRequest(place), None, owner)
        pages.append(page)
        place = page.next_place
    return pages


async def _facts(ledger: Ledger, contracts: Contracts, host: Address) -> wire.ContractFacts:
    deployment, cursor = contracts.deployment, ledger.cursor
    block = cursor.block_number if cursor is not None else await contracts.provider.block_number()
    credited = [
        wire.Credit(asset, await contracts.earnings(host, asset, block))
        for asset in (deployment.usdc, NATIVE)
    ]
    return wire.ContractFacts(
        host=host,
        chain_id=deployment.chain_id,
        usdc=deployment.usdc,
        block_number=block,
        credits=tuple(credited),
        gas_balance=await contracts.provider.native_balance(host),
    )


def _failed_of(
    session: Session, failed: Mapping[int | None, list[TransactionDropped]]
) -> Sequence[TransactionDropped]:
    """None for a vanished session: its job id, and with it the cost, is another one's."""
    return () if session.opened_in is None else failed.get(session.terms.job_id, ())


def _by_job(transactions: Iterable[Transaction]) -> dict[int | None, list[Transaction]]:
    """By the session a transaction served; None: by no single one."""
    found: dict[int | None, list[Transaction]] = {}
    for one in transactions:
        found.setdefault(job_of(one.key), []).append(one)
    return found
