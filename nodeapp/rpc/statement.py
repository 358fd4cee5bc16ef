"""Asking the chain process for the host's statement, page by page."""

from __future__ import annotations

from pathlib import Path

from nodeapp.service.client import RpcClient
from nodeapp.wire import ipc_statement as wire

PAGE_SECONDS = 60.0


async def read_statement(socket_path: Path) -> list[wire.StatementPage]:
    """Every page; the last one has what the chain says.

    Raises:
        Unavailable: the process or its chain does not answer.
    """
    pages: list[wire.StatementPage] = []
    place = 0
    async with RpcClient(socket_path, "chain") as client:
        while place != wire.LAST_PAGE:
            reply = await client.call(
                "/v1/statement",
                wire.StatementRequest(place),
                wire.StatementReply,
                deadline_seconds=PAGE_SECONDS,
            )
            page = wire.decode_page(reply)
            pages.append(page)
            place = page.next_place
    return pages
