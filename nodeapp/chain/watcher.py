"""Follow confirmed blocks: marketplace events of our sessions become journalled changes.

The cursor moves with the events of its blocks in one journal write, never without them. Blocks
that may still change are read again with every step, so an event that an endpoint left out is
found later, and one that is known is not written again. When a block has another hash than it had,
everything above the newest block that is left is taken back (decision 0006).
"""

from __future__ import annotations

from collections.abc import Sequence

from nodeapp.chain.ledger import CursorMoved, Ledger, RewoundTo
from nodeapp.core.errors import Corrupt, NotFound, Unavailable
from nodeapp.core.ids import Address, JobId
from nodeapp.core.session import (
    Change,
    ContractReceiveProofAccepted,
    ContractReceiveSessionEnded,
    ContractReceiveSessionOpened,
    Phase,
    Session,
    Terms,
)
from nodeapp.core.units import BlockNumber, BlockTime
from nodeapp.evm.contracts import Contracts, SessionJob, SessionStatus
from nodeapp.evm.events import (
    MarketplaceEvent,
    ProofSubmitted,
    SessionCompleted,
    SessionCreated,
    SessionTimedOut,
)
from nodeapp.evm.marketplace_events import MarketplaceEvents
from nodeapp.evm.provider import Block
from nodeapp.service.logs import get_logger

BLOCKS_AT_ONCE = 20_000
"""Journalled step by step, so that a long catching-up goes on where it was interrupted."""
DEFAULT_WINDOW_BLOCKS = 64
MAX_STORED = 2**63 - 1
"""Anybody may open a session over 1000 native coins, in wei; the journal's numbers have 64 bits."""
_log = get_logger(__name__)


class Watcher:
    """Poll with `step()`."""

    def __init__(
        self,
        ledger: Ledger,
        contracts: Contracts,
        host: Address,
        *,
        confirmations: int,
        window_blocks: int = DEFAULT_WINDOW_BLOCKS,
    ) -> None:
        self._ledger = ledger
        self._contracts = contracts
        self._events = MarketplaceEvents(contracts.provider, contracts.deployment)
        self._host = host
        self._behind = max(0, confirmations - 1)
        self._refused: set[JobId] = set()
        self._window = window_blocks
        self._audited = JobId(0)
        self.head: Block | None = None
        """The newest block, confirmed or not."""
        self.now: Block | None = None
        """The newest confirmed block, all taken in."""
        self.is_paused = False
        """The marketplace takes neither sessions nor claims, as of `now`."""

    async def step(self) -> bool:
        """Take in what was confirmed since the last call; True when the chain has moved.

        Raises:
            Unavailable: no endpoint answered, or what they say does not fit together.
            Corrupt: a block that counted as final is gone.
        """
        provider = self._contracts.provider
        head = await provider.block()
        if self.now is not None and self.head is not None and head.hash == self.head.hash:
            return False
        last = BlockNumber(head.number - self._behind)
        if last < 0:
            return False
        newest = head if self._behind == 0 else await provider.block(last)
        if not await self._go_back(newest):
            return False
        while (first := self._next_block()) <= last:
            await self._take_in(first, self._batch_end(first, last), newest)
        self.is_paused = await self._contracts.is_paused(newest.number)
        # Not before all is taken in: what is owed is only known then.
        self.head, self.now = head, newest
        await self._audit(newest)
        return True

    def _next_block(self) -> BlockNumber:
        cursor = self._ledger.cursor
        if cursor is None:
            return self._contracts.deployment.first_block
        return BlockNumber(cursor.block_number + 1)

    def _batch_end(self, first: BlockNumber, last: BlockNumber) -> BlockNumber:
        """Not into the window with the first batches: a reorg needs a point below it."""
        deep = last - self._window
        return BlockNumber(min(first + BLOCKS_AT_ONCE - 1, deep if first <= deep else last))

    async def _go_back(self, newest: Block) -> bool:
        """Take back what a reorg made void; False: the endpoint is behind, there is nothing new."""
        view = self._ledger.view
        known = [point for point in view.points if point.block_number <= newest.number]
        if not view.points:
            return True
        if known and await self._is_there(known[-1], newest):
            return known[-1] is view.points[-1]
        for point in reversed(known[:-1]):
            if await self._is_there(point, newest):
                await self._rewind(RewoundTo(point.block_number, point.block_hash))
                return True
        oldest = view.points[0]
        if oldest.block_number > newest.number:
            return False
        if oldest.block_number <= view.final:
            raise Corrupt(
                f"block {oldest.block_number} is not {oldest.block_hash} any more: a reorg deeper"
                f" than the {self._window} blocks of chain.reorg_window_blocks, or another chain"
                f" with id {self._contracts.deployment.chain_id}. Check chain.rpc_urls; a chain"
                " that was started anew needs a new state directory"
            )
        await self._rewind(RewoundTo(BlockNumber(self._contracts.deployment.first_block - 1), ""))
        return True

    async def _is_there(self, point: CursorMoved, newest: Block) -> bool:
        if point.block_number == newest.number:
            return newest.hash == point.block_hash
        if point.block_number == newest.number - 1:
            return newest.parent_hash == point.block_hash
        block = await self._contracts.provider.block(point.block_number)
        return block.hash == point.block_hash

    async def _rewind(self, rewound: RewoundTo) -> None:
        cursor = self._ledger.cursor
        _log.warning(
            "chain reorganised",
            from_block=cursor.block_number if cursor else None,
            to_block=rewound.block_number,
        )
        self._refused.clear()  # another session may get the number
        await self._ledger.record(rewound)

    async def _take_in(self, first: BlockNumber, end: BlockNumber, newest: Block) -> None:
        view, deployment = self._ledger.view, self._contracts.deployment
        is_last = end == newest.number
        until = newest if is_last else await self._contracts.provider.block(end)
        again = max(first - self._window, view.final + 1, deployment.first_block)
        changes = await self._changes(BlockNumber(min(again, first)), end, newest)
        if changes and (await self._contracts.provider.block(end)).hash != until.hash:
            raise Unavailable(f"block {end} changed while its events were read")
        final = view.final_after(end, self._window)
        await self._ledger.record(*changes, CursorMoved(end, until.hash, final))

    async def _changes(self, first: BlockNumber, end: BlockNumber, newest: Block) -> list[Change]:
        """What these blocks say and the ledger does not know yet."""
        sessions = self._ledger.sessions
        unended = [job_id for job_id, session in sessions.items() if session.ended is None]
        found = await self._events.get_session_events(first, end, self._host, unended)
        opened = {event.job_id for event in found if isinstance(event, SessionCreated)}
        ours = opened.union(sessions)
        return await self._told([event for event in found if event.job_id in ours], newest)

    async def _told(self, found: Sequence[MarketplaceEvent], newest: Block) -> list[Change]:
        # Some endpoints send a log twice.
        events = [event for event in dict.fromkeys(found) if self._is_news(event)]
        times: dict[BlockNumber, BlockTime] = {}
        for event in events:
            number = event.at.block_number
            if number not in times:
                times[number] = (await self._contracts.provider.block(number)).timestamp
        told = [await self._change(event, newest, times[event.at.block_number]) for event in events]
        refused = {change.job_id for change in told if not _can_be_stored(change)}
        for job_id in refused:
            _log.warning("a session with absurd terms is not served", job_id=job_id)
        self._refused |= refused
        return [change for change in told if change.job_id not in self._refused]

    def _is_news(self, event: MarketplaceEvent) -> bool:
        if event.job_id in self._refused:
            return False
        session, block = self._ledger.sessions.get(event.job_id), event.at.block_number
        match event:
            case SessionCreated():
                return session is None or session.opened_in != block
            case ProofSubmitted(proof_hash=proof_hash):
                known = session.proofs if session is not None else ()
                return all((one.proof_hash, one.block) != (proof_hash, block) for one in known)
            case SessionCompleted():
                return session is None or session.ended is None or session.ended.block != block
            case SessionTimedOut():
                return False  # SessionCompleted is emitted with it

    async def _change(self, event: MarketplaceEvent, newest: Block, at: BlockTime) -> Change:
        block, tx_hash = event.at.block_number, event.at.tx_hash
        if isinstance(event, ProofSubmitted):
            return ContractReceiveProofAccepted(
                event.job_id, event.tokens, event.proof_hash, at, block, tx_hash
            )
        job = await self._contracts.session(event.job_id, newest.number)
        if isinstance(event, SessionCreated):
            return ContractReceiveSessionOpened(event.job_id, self._terms(job), block, tx_hash)
        return ContractReceiveSessionEnded(
            event.job_id,
            _phase(job),
            job.host_share,
            job.refund,
            block,
            at,
            tx_hash,
            job.tokens_used,
        )

    async def _audit(self, newest: Block) -> None:
        """Look after logs that an endpoint left out for longer than blocks are read again."""
        session = self._lacking() or await self._disproved(newest)
        if session is None:
            return
        await self._read_again(session, newest)

    async def _read_again(self, session: Session, newest: Block) -> None:
        job_id = session.terms.job_id
        first = session.opened_in or self._contracts.deployment.first_block
        events = await self._events.get_session_events(first, newest.number, self._host, [job_id])
        mine = [event for event in events if event.job_id == job_id]
        changes = await self._told(mine, newest)
        if changes:
            _log.warning("logs were missing", job_id=job_id, found=len(changes))
            await self._ledger.record(*changes)

    async def look_for(self, job_id: JobId) -> None:
        """Take in a session of ours whose creation we were not told of, if there is one.

        The contract says when it was opened; the block of that time is found by halving.
        """
        newest, rewinds = self.now, self._ledger.rewinds
        if newest is None or job_id in self._ledger.sessions:
            return
        try:
            job = await self._contracts.session(job_id, newest.number)
        except NotFound:
            return
        if job.host != self._host or job.status is not SessionStatus.ACTIVE:
            return  # one that is over would be served until its end is found
        low, high = self._contracts.deployment.first_block, newest.number
        while low < high:
            middle = BlockNumber((low + high + 1) // 2)
            block = await self._contracts.provider.block(middle)
            if block.timestamp <= job.start_time:
                low = middle
            else:
                high = BlockNumber(middle - 1)
        opened = ContractReceiveSessionOpened(job_id, self._terms(job), low)
        if _can_be_stored(opened):
            _log.warning("a creation was missing", job_id=job_id, block_number=low)
            # What was read on a branch that is gone meanwhile would never be taken back.
            await self._ledger.decide(lambda: [opened] if self._ledger.rewinds == rewinds else [])
            if job.tokens_used and job_id in self._ledger.sessions:
                await self._read_again(self._ledger.session(job_id), newest)

    def _lacking(self) -> Session | None:
        """A session that ended a short while ago with claims that we were not told."""
        final = self._ledger.view.final
        for session in self._ledger.sessions.values():
            if session.ended is not None and session.ended.block > final and session.lacks_proofs:
                return session
        return None

    async def _disproved(self, newest: Block) -> Session | None:
        """One open session a step is held against the contract, in turn."""
        unsettled = self._ledger.unsettled
        ids = [job_id for job_id, one in unsettled.items() if one.opened_in is not None]
        if not ids:
            return None
        self._audited = min((one for one in ids if one > self._audited), default=min(ids))
        session = unsettled[self._audited]
        try:
            job = await self._contracts.session(self._audited, newest.number)
        except NotFound:
            return None  # a reorg meanwhile; the next step sees it
        is_ended = job.status is not SessionStatus.ACTIVE
        is_right = (job.tokens_used, is_ended) == (session.claimed, session.ended is not None)
        return None if is_right else session

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


def _phase(job: SessionJob) -> Phase:
    return Phase.TIMED_OUT if job.status is SessionStatus.TIMED_OUT else Phase.COMPLETED


def _can_be_stored(change: Change) -> bool:
    if not isinstance(change, ContractReceiveSessionOpened):
        return True
    terms = change.terms
    numbers = (terms.deposit, terms.price_per_token, terms.proof_interval, terms.job_id)
    return max(numbers) <= MAX_STORED
