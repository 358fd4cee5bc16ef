"""Blocks and events as the watcher sees them; they can be told to fail."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import Address, JobId
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.events import MarketplaceEvent
from nodeapp.evm.provider import Block


@dataclass
class FakeBlocks:
    """nodeapp.evm.Provider towards the watcher: block n has hash "0x<branch><n>"; chains fork."""

    head: int = 10
    branches: list[tuple[int, str]] = field(default_factory=lambda: [(0, "a")])
    is_down: bool = False

    @property
    def branch(self) -> str:
        """Of the newest block."""
        return self.branch_of(self.head)

    def branch_of(self, number: int) -> str:
        """Which branch a block is of."""
        return next(name for first, name in reversed(self.branches) if number >= first)

    def fork(self, *, from_block: int, branch: str) -> None:
        """This block and all after it are other ones now."""
        self.branches = [one for one in self.branches if one[0] < from_block]
        self.branches.append((from_block, branch))

    def hash_of(self, number: int) -> str:
        """The hash of a block as it is now."""
        return f"0x{self.branch_of(number)}{number}" if number >= 0 else "0x"

    async def block(self, tag: BlockNumber | str = "latest") -> Block:
        if self.is_down:
            raise Unavailable("no endpoint answered")
        number = self.head if isinstance(tag, str) else int(tag)
        return Block(
            BlockNumber(number),
            self.hash_of(number),
            self.hash_of(number - 1),
            BlockTime(1000 + number),
            Wei(0),
        )


@dataclass
class FakeEvents:
    """nodeapp.evm.marketplace_events: what the node's logs hold."""

    all: list[MarketplaceEvent] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)

    async def get_session_events(
        self, first: BlockNumber, last: BlockNumber, host: Address, jobs: Collection[JobId]
    ) -> tuple[MarketplaceEvent, ...]:
        self.asked.append((first, last))
        return tuple(event for event in self.all if first <= event.at.block_number <= last)
