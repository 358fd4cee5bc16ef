"""Take earnings out of the contract and send them to the payout address, by schedule and size.

One withdrawal per asset serves all sessions; core/withdrawals.py says which and how much.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, field

import msgspec

from nodeapp.chain.ledger import Entry, Ledger
from nodeapp.chain.queue import TransactionQueue
from nodeapp.core.audit import AuditSink, Unrecorded, WithdrawalDone, WithdrawalFailed
from nodeapp.core.errors import Corrupt, NodeError, NotFound, Rejected
from nodeapp.core.ids import Address, JobId, TxHash
from nodeapp.core.outbox import TransactionMined
from nodeapp.core.session import EarningsWithdrawn
from nodeapp.core.units import BaseUnits, BlockNumber, Wei
from nodeapp.core.withdrawals import (
    NATIVE,
    WITHDRAWAL_GAS,
    WithdrawalFinished,
    WithdrawalPlanned,
    WithdrawalPolicy,
    is_due,
    is_worth_it,
    owed,
    payout_key,
    plan_withdrawal,
    withdraw_key,
)
from nodeapp.evm.abi import Call
from nodeapp.evm.calls import Calls, send_native, transfer
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Block
from nodeapp.service.logs import get_logger

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 60.0
GONE_BLOCKS = 10
"""A share must be missing for so long before it counts as taken out by other software."""
TOLD_FAILURES = 3
TOLD_AFTER_SECONDS = 0.5
AT_ONCE = WithdrawalPolicy(0, Wei(0), BaseUnits(0), math.inf, BaseUnits(0))
_log = get_logger(__name__)


@dataclass(slots=True)
class _Work:
    """One asset's withdrawal under way."""

    task: asyncio.Task[None] | None = None
    failures: int = 0
    error: NodeError | None = None
    """Why the last attempt failed."""
    looked_at: BlockNumber | None = None
    missing_since: BlockNumber | None = None


@dataclass(slots=True)
class Withdrawer:
    """`consider` is called on every change and every block; `payout` may be empty.

    Not automatic: only what the operator asked for is taken out.
    """

    ledger: Ledger
    queue: TransactionQueue
    contracts: Contracts
    calls: Calls
    host: Address
    payout: Address
    policy: WithdrawalPolicy
    is_automatic: bool = True
    audit: AuditSink = field(default_factory=Unrecorded)
    _work: dict[Address, _Work] = field(default_factory=dict)
    _asked: set[Address] = field(default_factory=set)
    _seen: BlockNumber | None = None
    _doubtful: set[int] = field(default_factory=set)
    """Withdrawals of a restored journal that may have been passed on in the part that was lost."""

    def __post_init__(self) -> None:
        """Before anything is sent: later it cannot be told what came out of the backup."""
        if self.ledger.is_restored:
            plans = self.ledger.withdrawals.open.values()
            self._doubtful = {plan.number for plan in plans if self._may_be_paid(plan)}

    def consider(self, now: Block, tasks: asyncio.TaskGroup) -> None:
        """Start on every asset that is due and not under way; ends of sessions come with blocks."""
        is_new, self._seen = now.number != self._seen, now.number
        if not (is_new or self.ledger.withdrawals.open or self._asked):
            return
        for asset in self._assets():
            work = self._work.setdefault(asset, _Work())
            if work.task is None or work.task.done():
                work.task = tasks.create_task(self._run(asset, now), name=f"withdraw {asset}")

    async def withdraw_now(self, asset: Address) -> tuple[WithdrawalPlanned, TransactionMined]:
        """Take everything out, whatever schedule and thresholds say, and wait until it is done.

        Raises:
            NotFound: nothing is credited.
            Rejected: it was refused.
            Unavailable: it failed several times; what is signed is still sent.
        """
        state = self.ledger.withdrawals
        if asset not in state.open and await self.contracts.earnings(self.host, asset) == 0:
            raise NotFound("no earnings are credited in this asset")
        awaited = state.open[asset].number if asset in state.open else state.count
        self._asked.add(asset)
        work = self._work.setdefault(asset, _Work())
        work.error = None
        try:
            while not self._is_over(asset, awaited):
                self._tell(work)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TOLD_AFTER_SECONDS):
                        await self.ledger.wait_for_change()
        finally:
            self._asked.discard(asset)
        plan = self.ledger.withdrawals.last[asset]
        mined = self.ledger.mined.get(withdraw_key(plan))
        if mined is None:
            raise Rejected("the withdrawal was refused; ask again")
        return plan, mined

    @staticmethod
    def _tell(work: _Work) -> None:
        """An operator waits: a refusal is told at once, an endpoint that is down may come back."""
        if work.error is not None and (
            isinstance(work.error, Rejected) or work.failures >= TOLD_FAILURES
        ):
            raise work.error

    def _is_over(self, asset: Address, number: int) -> bool:
        last = self.ledger.withdrawals.last.get(asset)
        is_there = last is not None and last.number >= number
        return is_there and asset not in self.ledger.withdrawals.open

    def _assets(self) -> set[Address]:
        state, now = self.ledger.withdrawals, self.ledger.cursor
        if now is None:
            return set()
        found = {*state.open, *self._asked}
        if not self.is_automatic:
            return found
        for session in self.ledger.unsettled.values():
            asset = session.terms.asset
            if session.ended is not None and session.host_earnings > 0 and asset not in found:
                found.add(asset)
        return found

    async def _run(self, asset: Address, now: Block) -> None:
        work = self._work[asset]
        try:
            await self.step(asset, now)
        except Corrupt:
            raise
        except NodeError as error:
            pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**work.failures)
            work.failures += 1
            work.error = error
            self.audit.record(WithdrawalFailed(asset, error.message))
            _log.warning(
                "withdrawal failed",
                asset=asset,
                code=error.code,
                error=error.message,
                retry_seconds=pause,
            )
            await asyncio.sleep(pause)
        else:
            work.failures, work.error = 0, None

    async def step(self, asset: Address, now: Block) -> None:
        """Plan a withdrawal if one is due, and carry out the one that is planned.

        Raises:
            Rejected: a transaction was refused; it is tried again.
            Unavailable: no endpoint answered, or not mined in time.
        """
        await self._give_up_doubtful(asset)
        if asset not in self.ledger.withdrawals.open:
            await self._book_again(asset)
            await self._plan(asset, now)
        plan = self.ledger.withdrawals.open.get(asset)
        if plan is not None:
            await self._carry_out(plan)

    def _may_be_paid(self, plan: WithdrawalPlanned) -> bool:
        """Signed withdrawal, unknown payout: the lost part of the journal may hold it."""
        known = {*self.ledger.mined, *self.ledger.outbox.pending}
        return withdraw_key(plan) in known and payout_key(plan) not in known

    async def _give_up_doubtful(self, asset: Address) -> None:
        """Nothing on chain refuses a payment a second time, so it is left to the operator."""
        plan = self.ledger.withdrawals.open.get(asset)
        if plan is None or plan.number not in self._doubtful:
            return
        await self.ledger.record(WithdrawalFinished(plan.number, "restored journal"))
        if plan.payout:
            _log.error(
                "payout left to the operator: the restored journal does not know if it was made",
                asset=asset,
                amount=plan.amount,
                payout=plan.payout,
            )

    async def _book_again(self, asset: Address) -> None:
        """A reorganisation took the bookings back, and the withdrawal was mined once more."""
        last = self.ledger.withdrawals.last.get(asset)
        mined = self.ledger.mined.get(withdraw_key(last)) if last is not None else None
        if last is not None and mined is not None:
            entries = self._booked(last.job_ids, mined.block_number, mined.tx_hash)
            if entries:
                await self.ledger.record(*entries)

    async def _plan(self, asset: Address, now: Block) -> None:
        cursor, state = self.ledger.cursor, self.ledger.withdrawals
        is_asked = asset in self._asked
        policy = AT_ONCE if is_asked else self.policy
        if cursor is None or not is_due(state, asset, now.timestamp, policy):
            return
        height, work = cursor.block_number, self._work.setdefault(asset, _Work())
        if (work.looked_at == height and not is_asked) or self._is_unsettled(height):
            return
        sessions = owed(tuple(self.ledger.unsettled.values()), asset)
        shares = BaseUnits(sum(session.host_earnings for session in sessions))
        if not is_asked and not is_worth_it(shares, asset, Wei(0), policy):
            return
        work.looked_at = height
        balance = await self.contracts.earnings(self.host, asset, height)
        plan = plan_withdrawal(
            state,
            sessions,
            asset=asset,
            balance=balance,
            payout=self._payout_now,
            now=now.timestamp,
        )
        if not self._is_gone_for_long(asset, plan, height):
            if not is_asked:
                return
            plan = msgspec.structs.replace(plan, gone=())
        entries = self._booked(plan.gone, height, TxHash(""))
        cost = Wei(WITHDRAWAL_GAS * await self.queue.gas_price())
        if (plan.job_ids or is_asked) and is_worth_it(plan.amount, asset, cost, policy):
            entries = [plan, *entries]
        if entries and self.ledger.withdrawals == state:
            await self.ledger.record(*entries)

    def _is_unsettled(self, height: BlockNumber) -> bool:
        """A withdrawal of ours that may or may not be in the balance at this height."""
        pending = any(key.startswith("withdraw/") for key in self.ledger.outbox.pending)
        ends = [
            self.ledger.mined.get(withdraw_key(plan))
            for plan in self.ledger.withdrawals.last.values()
        ]
        return pending or any(end is not None and end.block_number > height for end in ends)

    def _is_gone_for_long(
        self, asset: Address, plan: WithdrawalPlanned, height: BlockNumber
    ) -> bool:
        """An endpoint's odd answer must not be booked; money really taken out stays away."""
        work = self._work.setdefault(asset, _Work())
        if not plan.gone:
            work.missing_since = None
            return True
        if work.missing_since is None or work.missing_since > height:
            work.missing_since = height
        return height - work.missing_since >= GONE_BLOCKS

    async def _carry_out(self, plan: WithdrawalPlanned) -> None:
        call = self.calls.withdraw_earnings(plan.asset, plan.amount)
        try:
            mined = await self.queue.execute(withdraw_key(plan), call)
        except Reverted as error:
            await self.ledger.record(WithdrawalFinished(plan.number, error.message))
            raise
        await self.ledger.decide(
            lambda: self._booked(plan.job_ids, mined.block_number, mined.tx_hash)
        )
        payee = self._payee(plan)
        if payee:
            payment = payment_of(plan.asset, payee, plan.amount)
            await self.queue.execute(payout_key(plan), payment, is_payment=True)
        await self.ledger.record(WithdrawalFinished(plan.number))
        done = (plan.asset, str(plan.amount), len(plan.job_ids), payee or self.host)
        self.audit.record(WithdrawalDone(*done))
        _log.info(
            "earnings withdrawn",
            asset=plan.asset,
            amount=plan.amount,
            sessions=len(plan.job_ids),
            payout=payee or self.host,
        )

    def _payee(self, plan: WithdrawalPlanned) -> Address:
        """The planned one while something signed may pay it, else the one of the settings.

        An address that cannot be paid would otherwise hold up all later withdrawals: the signing
        policy knows none but that of the settings.
        """
        key = payout_key(plan)
        if key in self.ledger.outbox.pending or key in self.ledger.mined:
            return plan.payout
        return self._payout_now if plan.payout else plan.payout

    @property
    def _payout_now(self) -> Address:
        return self.payout if self.payout != self.host else Address("")

    def _booked(
        self, job_ids: tuple[JobId, ...], block: BlockNumber, tx_hash: TxHash
    ) -> list[Entry]:
        entries: list[Entry] = []
        for job_id in job_ids:
            session = self.ledger.unsettled.get(job_id)
            if session is not None and session.ended is not None and session.withdrawn is None:
                entries.append(EarningsWithdrawn(job_id, session.host_earnings, block, tx_hash))
        return entries


def payment_of(asset: Address, to: Address, amount: BaseUnits) -> Call:
    """Sessions may be paid in the native coin, which is no contract."""
    return send_native(to, Wei(amount)) if asset == NATIVE else transfer(asset, to, amount)
