"""The host's statement, page by page: archived sessions first, the others last.

A page travels as JSON inside the message: amounts in wei can be over 2**64, which MessagePack
cannot carry.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from nodeapp.core.ids import Address
from nodeapp.core.statement import SessionLine, TransactionLine
from nodeapp.core.units import BaseUnits, BlockNumber, Wei
from nodeapp.wire.ipc import Message

LAST_PAGE = -1


class StatementRequest(Message, frozen=True):
    """The page at a place; begin with 0."""

    place: Annotated[int, msgspec.Meta(ge=0)] = 0


class Credit(Message, frozen=True):
    """What the earnings contract holds for the host in an asset."""

    asset: Address
    amount: BaseUnits


class ContractFacts(Message, frozen=True):
    """What the chain says beside the journal, as of the newest block the journal knows."""

    host: Address
    chain_id: int
    usdc: Address
    block_number: BlockNumber
    credits: tuple[Credit, ...]
    gas_balance: Wei


class StatementPage(Message, frozen=True):
    """Some lines; `others` (own transactions of no single session) come with the last page."""

    lines: tuple[SessionLine, ...]
    next_place: int
    """LAST_PAGE after the last one."""
    others: tuple[TransactionLine, ...] = ()
    contract: ContractFacts | None = None


class StatementReply(Message, frozen=True):
    """A StatementPage."""

    page: bytes


_page = msgspec.json.Decoder(StatementPage).decode


def encode_page(page: StatementPage) -> StatementReply:
    """A page on its way."""
    return StatementReply(msgspec.json.encode(page))


def decode_page(reply: StatementReply) -> StatementPage:
    """A page as it was sent."""
    return _page(reply.page)
