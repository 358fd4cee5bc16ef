"""A chain as the money process sees it: it mines what it is sent and can be told to fail."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.ids import Address, TxHash
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.errors import Reverted
from nodeapp.evm.events import MarketplaceEvent
from nodeapp.evm.provider import Block
from nodeapp.evm.transactions import Receipt, SignedTransaction


class Died(Exception):
    """The process ends here, as kill -9 does."""


@dataclass
class FakeChain:
    """nodeapp.evm.Transactions towards the queue; `effects` is what the contracts saw, in order."""

    effects: list[str] = field(default_factory=list)
    mined: dict[TxHash, Receipt] = field(default_factory=dict)
    calls: dict[bytes, str] = field(default_factory=dict)
    account_nonce: int = 0
    die_at: str = ""
    refuse: str = ""
    revert: bool = False
    is_down: bool = False
    broadcasts: int = 0

    def _maybe_die(self, place: str) -> None:
        if self.die_at == place:
            self.die_at = ""
            raise Died(place)

    async def nonce(self, address: Address, block: str = "pending") -> int:
        if self.is_down:
            raise Unavailable("no endpoint answered")
        return self.account_nonce

    async def prepare(
        self, call: Call, wallet: object, nonce: int, *, gas: int | None = None
    ) -> SignedTransaction:
        self._maybe_die("before journal")
        raw = f"{call.function}|{nonce}".encode()
        self.calls[raw] = call.function
        return SignedTransaction(raw, TxHash("0x" + hashlib.sha256(raw).hexdigest()), nonce)

    async def broadcast(self, signed: SignedTransaction) -> TxHash:
        self._maybe_die("before broadcast")
        if self.is_down:
            raise Unavailable("no endpoint answered")
        self.broadcasts += 1
        if signed.hash in self.mined:
            return signed.hash
        if self.refuse:
            reason, self.refuse = self.refuse, ""
            raise Rejected(reason)
        if signed.nonce < self.account_nonce:
            raise Rejected(f"transaction {signed.hash} refused: nonce too low")
        self.account_nonce = signed.nonce + 1
        if not self.revert:
            self.effects.append(self.calls[signed.raw])
        self.mined[signed.hash] = Receipt(
            signed.hash,
            not self.revert,
            BlockNumber(len(self.mined) + 1),
            "0x" + "0" * 64,
            21_000,
            Wei(1),
            None,
            (),
        )
        self._maybe_die("after broadcast")
        return signed.hash

    async def wait_mined(
        self, tx_hash: TxHash, confirmations: int = 1, deadline_seconds: float = 60.0
    ) -> Receipt:
        if self.is_down:
            raise Unavailable("no endpoint answered")
        receipt = self.mined[tx_hash]
        if not receipt.succeeded:
            raise Reverted(f"transaction {tx_hash}", "Not active")
        return receipt


@dataclass
class FakeBlocks:
    """nodeapp.evm.Provider towards the watcher: block n has hash "0x<branch><n>"."""

    head: int = 10
    branch: str = "a"
    is_down: bool = False

    async def block(self, tag: BlockNumber | str = "latest") -> Block:
        if self.is_down:
            raise Unavailable("no endpoint answered")
        number = self.head if isinstance(tag, str) else int(tag)
        return Block(
            BlockNumber(number), f"0x{self.branch}{number}", "0x", BlockTime(1000 + number), Wei(0)
        )


@dataclass
class FakeEvents:
    """nodeapp.evm.MarketplaceEvents: what the node's logs hold."""

    all: list[MarketplaceEvent] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)

    async def get_events(
        self, first: BlockNumber, last: BlockNumber, host: Address
    ) -> tuple[MarketplaceEvent, ...]:
        self.asked.append((first, last))
        return tuple(event for event in self.all if first <= event.at.block_number <= last)
