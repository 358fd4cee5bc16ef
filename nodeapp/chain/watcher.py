"""Follow confirmed blocks: marketplace events of our sessions become journalled changes.

The cursor moves with the events of its blocks in one journal write, never without them.
"""

from __future__ import annotations

from collections.abc import Sequence

from nodeapp.chain.ledger import CursorMoved, Ledger
from nodeapp.core.errors import Corrupt
from nodeapp.core.ids import Address
from nodeapp.core.session import (
    Change,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    ContractReceiveSessionOpened,
    Phase,
    Terms,
)
from nodeapp.core.units import BlockNumber, BlockTime
from nodeapp.evm.contracts import Contracts, SessionJob, SessionStatus
from nodeapp.evm.events import (
    MarketplaceEvent,
    MarketplaceEvents,
    ProofSubmitted,
    SessionCompleted,
    SessionCreated,
    SessionTimedOut,
)
from nodeapp.evm.provider import Block

BLOCKS_AT_ONCE = 20_000
"""Journalled step by step, so that a long catching-up goes on where it was interrupted."""


class Watcher:
    """Poll with `step()`; `now` is the newest confirmed block."""

    def __init__(
        self, ledger: Ledger, contracts: Contracts, host: Address, *, confirmations: int
    ) -> None:
        self._ledger = ledger
        self._contracts = contracts
        self._events = MarketplaceEvents(contracts.provider, contracts.deployment)
        self._host = host
        self._behind = max(0, confirmations - 1)
        self.now: Block | None = None

    async def step(self) -> bool:
        """Take in what was confirmed since the last call; True when blocks were taken in.

        Raises:
            Unavailable: no endpoint answered.
            Corrupt: a block we took for confirmed is gone (a reorg deeper than allowed).
        """
        provider = self._contracts.provider
        head = await provider.block()
        last = BlockNumber(head.number - self._behind)
        if last < 0 or (self.now is not None and last <= self.now.number):
            return False
        await self._check_cursor()
        newest = head if self._behind == 0 else await provider.block(last)
        while (first := self._next_block()) <= last:
            end = BlockNumber(min(last, first + BLOCKS_AT_ONCE - 1))
            await self._take_in(first, end, newest)
        # Not before all is taken in: what is owed is only known then.
        self.now = newest
        return True

    def _next_block(self) -> BlockNumber:
        cursor = self._ledger.cursor
        if cursor is None:
            return self._contracts.deployment.first_block
        return BlockNumber(cursor.block_number + 1)

    async def _take_in(self, first: BlockNumber, end: BlockNumber, newest: Block) -> None:
        events = await self._events.get_events(first, end, self._host)
        changes = await self._changes(events, newest.number)
        is_last = end == newest.number
        until = newest if is_last else await self._contracts.provider.block(end)
        await self._ledger.record(*changes, CursorMoved(end, until.hash))

    async def _check_cursor(self) -> None:
        cursor = self._ledger.cursor
        if cursor is None:
            return
        block = await self._contracts.provider.block(cursor.block_number)
        if block.hash != cursor.block_hash:
            raise Corrupt(
                f"block {cursor.block_number} changed from {cursor.block_hash} to {block.hash}:"
                " a reorg deeper than chain.confirmations, or another chain"
            )

    async def _changes(self, events: Sequence[MarketplaceEvent], last: BlockNumber) -> list[Change]:
        """Events of sessions that are ours: known before, or opened earlier in this batch."""
        ours = set(self._ledger.sessions)
        changes: list[Change] = []
        for event in events:
            if isinstance(event, SessionCreated):
                ours.add(event.job_id)
            change = await self._change(event, last) if event.job_id in ours else None
            if change is not None:
                changes.append(change)
        return changes

    async def _change(self, event: MarketplaceEvent, block: BlockNumber) -> Change | None:
        match event:
            case SessionCreated(job_id=job_id):
                job = await self._contracts.session(job_id, block)
                return ContractReceiveSessionOpened(job_id, self._terms(job))
            case ProofSubmitted(job_id=job_id):
                mined_in = await self._contracts.provider.block(event.at.block_number)
                return ContractReceiveProofAccepted(
                    job_id, event.tokens, event.proof_hash, BlockTime(mined_in.timestamp)
                )
            case SessionCompleted(job_id=job_id):
                return _ended(await self._contracts.session(job_id, block))
            case SessionTimedOut():
                return None  # SessionCompleted is emitted with it

    def _terms(self, job: SessionJob) -> Terms:
        deployment = self._contracts.deployment
        return Terms(
            chain_id=deployment.chain_id,
            marketplace=deployment.marketplace,
            job_id=job.job_id,
            renter=job.depositor,
            host=job.host,
            model_id=job.model_id,
            asset=job.payment_asset,
            deposit=job.deposit,
            price_per_token=job.price_per_token,
            proof_interval=job.proof_interval,
            proof_timeout_seconds=job.proof_timeout_seconds,
            max_duration_seconds=job.max_duration_seconds,
            started_at=job.start_time,
        )


def _ended(job: SessionJob) -> ContractReceiveSessionEnded:
    timed_out = job.status is SessionStatus.TIMED_OUT
    return ContractReceiveSessionEnded(
        job.job_id, Phase.TIMED_OUT if timed_out else Phase.COMPLETED, job.host_share, job.refund
    )
