"""The only sender of the wallet's transactions: sign, journal, send, judge, replace.

A key names the purpose ("claim/7/0"). What was signed for a key is in the journal before it is
sent and keeps its nonce, so after a crash the same bytes are sent again: no purpose is served
twice. Several keys may be under way at once; `step` moves all of them, whoever waits calls it.
Success is judged by the receipt, and only when it is deep enough. What is signed, and for how
much, is in attempts.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nodeapp.chain.attempts import Attempts
from nodeapp.chain.checkpoints import job_of
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.restored import RestoredGuard
from nodeapp.core.errors import NodeError, Rejected, Unavailable
from nodeapp.core.fees import GWEI, FeePolicy, Fees
from nodeapp.core.ids import JobId, TxHash
from nodeapp.core.outbox import (
    Errand,
    TransactionDropped,
    TransactionEnd,
    TransactionMined,
    TransactionSigned,
    gaps,
)
from nodeapp.core.reorgs import is_meant_for
from nodeapp.core.session import Phase
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Block
from nodeapp.evm.receipts import Receipt
from nodeapp.evm.refusals import InsufficientFunds, SendRefusal, SendRefused
from nodeapp.evm.signers import Signer
from nodeapp.evm.transactions import SignedTransaction, Transactions
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics

RESEND_BLOCKS = 3
MAX_GAPS_AT_ONCE = 8
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Policy of sending; blocks count from when an attempt was handed over."""

    fees: FeePolicy = FeePolicy(Wei(500 * GWEI), Wei(50 * GWEI))  # noqa: RUF009 (a NewType)
    replace_after_blocks: int = 10
    max_in_flight: int = 8
    poll_seconds: float = 0.2
    mined_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class _Handed:
    """When an attempt was handed to a pool: first, and last."""

    first: BlockNumber
    last: BlockNumber


class TransactionQueue:
    """Transactions of one account, in the order of their nonces."""

    def __init__(
        self,
        ledger: Ledger,
        transactions: Transactions,
        signer: Signer,
        *,
        confirmations: int,
        metrics: Metrics,
        settings: QueueSettings | None = None,
    ) -> None:
        self._ledger = ledger
        self._transactions = transactions
        self._signer = signer
        self._confirmations = max(1, confirmations)
        self._settings = settings or QueueSettings()
        self._attempts = Attempts(ledger, transactions, signer, self._settings.fees)
        self._lock = asyncio.Lock()  # guards: choosing a nonce, signing and journalling are one
        self._handed: dict[TxHash, _Handed] = {}
        self._troubles: dict[str, NodeError] = {}
        self._astray: dict[str, BlockNumber] = {}
        self._restored = RestoredGuard(ledger, transactions, signer.address)
        self._stepped_at = float("-inf")
        self._has_new = True
        self._mined = metrics.counter("transactions_mined_total", "Own transactions mined")
        self._failed = metrics.counter("transactions_failed_total", "Own ones mined in vain")
        self._replaced = metrics.counter("transactions_replaced_total", "Sent with higher fees")
        self._gas = metrics.counter("gas_used_total", "Gas of own transactions")
        self._pending = metrics.gauge("transactions_pending", "Own transactions not mined yet")

    async def execute(self, key: str, call: Call, *, is_payment: bool = False) -> TransactionMined:
        """Do it once; a repeated call returns the first result.

        Args:
            key: names the purpose.
            call: what to do; not looked at when something is signed for the key already.
            is_payment: nothing on chain would refuse it a second time, so after a failure it is
                signed anew only when no reorganisation can bring the first one back.

        Raises:
            Reverted: mined and failed, or the contract would refuse it; read the state again.
            InsufficientFunds: the account cannot pay for it; what is signed stays signed.
            Rejected: it cannot be sent.
            Unavailable: not mined in time, or gas costs more than allowed; call again later.
        """
        was_pending, permit = False, self._restored.permit()
        try:
            async with asyncio.timeout(self._settings.mined_seconds):
                while True:
                    async with self._lock:
                        done = self._ledger.mined.get(key)
                        if done is not None:
                            return done
                        if key not in self._ledger.outbox.pending:
                            if was_pending:
                                raise self._why_dropped(key)
                            await self._restored.check(permit)
                            await self._sign(key, call, is_payment=is_payment)
                        was_pending = key in self._ledger.outbox.pending
                        await self._step_when_due()
                    if key in self._troubles:
                        raise self._troubles.pop(key)
                    if key in self._ledger.outbox.pending or not was_pending:
                        await asyncio.sleep(self._settings.poll_seconds)
        except TimeoutError as error:
            raise Unavailable(
                f"{key} is not confirmed after {self._settings.mined_seconds:g} s; it stays signed"
            ) from error

    async def step(self) -> None:
        """Judge what was mined, send what is not in a pool, replace what waits too long.

        Raises:
            Unavailable: no endpoint answered.
            Rejected: an endpoint refused to answer.
        """
        async with self._lock:
            await self._step()

    async def gas_price(self) -> Wei:
        """What gas costs now, wei each.

        Raises:
            Unavailable: no endpoint answered.
        """
        head = await self._transactions.head()
        return Wei(head.base_fee + await self._transactions.suggested_tip())

    async def _step_when_due(self) -> None:
        """Those who wait together look at the chain together."""
        now = asyncio.get_running_loop().time()
        if self._has_new or now - self._stepped_at >= self._settings.poll_seconds:
            await self._step()
            self._stepped_at = asyncio.get_running_loop().time()

    async def _step(self) -> None:
        errands = self._ledger.outbox.in_order
        self._pending.set(len(errands))
        if not errands:
            self._handed.clear()
            return
        self._has_new = False
        head = await self._transactions.head()
        mined = await self._transactions.nonce(self._signer.address, "latest")
        for errand in errands:
            if errand.nonce < mined:
                with self._told(errand):
                    await self._judge(errand, head)
        await self._close_gaps(mined, head)
        waiting = [errand for errand in self._ledger.outbox.in_order if errand.nonce >= mined]
        for place, errand in enumerate(waiting):
            with self._told(errand):
                await self._push(errand, head, is_next=place == 0)

    @contextmanager
    def _told(self, errand: Errand) -> Iterator[None]:
        """A refusal concerns one key: whoever waits for it is told, the others go on."""
        try:
            yield
        except Rejected as error:
            before = self._troubles.get(errand.key)
            if before is None or before.message != error.message:
                _log.warning("transaction refused", key=errand.key, error=error.message)
            self._troubles[errand.key] = error

    # --- what was mined ---------------------------------------------------------

    async def _judge(self, errand: Errand, head: Block) -> None:
        """Its nonce is used: by which attempt, and is that deep enough?"""
        for attempt in reversed(errand.attempts):
            receipt = await self._transactions.receipt(attempt.tx_hash)
            if receipt is not None:
                self._forget_handed(errand)  # If it comes out of the chain, it is sent at once.
                if head.number - receipt.block_number + 1 >= self._confirmations:
                    await self._end(errand, attempt, receipt)
                return
        await self._judge_without_receipt(errand, head)

    async def _end(self, errand: Errand, attempt: TransactionSigned, receipt: Receipt) -> None:
        block = await self._transactions.block(receipt.block_number)
        if block.hash != receipt.block_hash:
            return
        end: TransactionEnd
        if receipt.succeeded and not attempt.is_cancel:
            end = TransactionMined(
                errand.key,
                attempt.tx_hash,
                receipt.gas_used,
                block.number,
                block.hash,
                block.timestamp,
                receipt.cost,
                attempt.value,
            )
            self._mined.inc()
        else:
            reason = await self._transactions.why_failed(receipt)
            end = TransactionDropped(
                errand.key,
                "cancelled" if attempt.is_cancel else f"reverted: {reason or 'no reason given'}",
                attempt.tx_hash,
                receipt.gas_used,
                block.number,
                block.hash,
                block.timestamp,
                receipt.cost,
            )
            self._failed.inc()
        await self._record_end(errand, end)
        self._gas.inc(receipt.gas_used)

    async def _judge_without_receipt(self, errand: Errand, head: Block) -> None:
        """Either the endpoint has no receipts, or another transaction took the nonce."""
        last = BlockNumber(head.number - self._confirmations + 1)
        try:
            found = await self._transactions.used_by(self._signer.address, errand.nonce, last)
        except Rejected as error:
            # The state is too old to look at. A contract refuses what it has seen already; a
            # payment it would take twice.
            if errand.is_payment:
                self._troubles[errand.key] = Unavailable(
                    f"whether {errand.key} was mined cannot be told ({error.message});"
                    " ask an endpoint that keeps old state"
                )
                return
            found = TxHash("")
        if found is None or errand.attempt(found) is not None:
            return
        block = await self._transactions.block(last)
        reason = f"nonce {errand.nonce} was used by another transaction {found}".rstrip()
        await self._record_end(
            errand,
            TransactionDropped(
                errand.key, reason, found, 0, block.number, block.hash, block.timestamp
            ),
        )

    async def _record_end(self, errand: Errand, end: TransactionEnd) -> None:
        if self._ledger.outbox.pending.get(errand.key) != errand:
            return  # A reorganisation was journalled meanwhile.
        await self._ledger.record(end)
        self._troubles.pop(errand.key, None)
        self._forget_handed(errand)
        match end:
            case TransactionMined():
                _log.info("transaction mined", key=end.key, tx_hash=end.tx_hash, gas=end.gas_used)
            case TransactionDropped():
                _log.warning(
                    "transaction failed", key=end.key, tx_hash=end.tx_hash, reason=end.reason
                )

    def _forget_handed(self, errand: Errand) -> None:
        for attempt in errand.attempts:
            self._handed.pop(attempt.tx_hash, None)

    def _why_dropped(self, key: str) -> NodeError:
        end = self._ledger.outbox.last_end(key)
        reason = end.reason if isinstance(end, TransactionDropped) else "dropped"
        if reason.startswith("reverted: "):
            return Reverted(key, reason.removeprefix("reverted: "))
        return Rejected(f"{key} was not done: {reason}")

    # --- what is sent -------------------------------------------------------------

    async def _sign(self, key: str, call: Call, *, is_payment: bool) -> None:
        if len(self._ledger.outbox.pending) < self._settings.max_in_flight:
            await self._attempts.first(key, call, is_payment=is_payment)
            self._has_new = True

    async def _push(self, errand: Errand, head: Block, *, is_next: bool) -> None:
        newest = errand.newest
        handed = self._handed.get(newest.tx_hash)
        if self._is_astray(errand):
            await self._hold_back(errand, head, is_next=is_next)
            return
        self._astray.pop(errand.key, None)
        if handed is None:
            await self._broadcast(errand, newest, head)
        elif is_next and head.number - handed.first >= self._settings.replace_after_blocks:
            await self._replace(errand, head)
        elif head.number - handed.last >= RESEND_BLOCKS or head.number < handed.last:
            await self._broadcast(errand, newest, head)

    def _is_astray(self, errand: Errand) -> bool:
        """A reorganisation took its session, and may have given the number to another."""
        job_id = job_of(errand.key)
        session = None if job_id is None else self._ledger.sessions.get(JobId(job_id))
        if session is None or errand.newest.is_cancel:
            return False
        return session.phase is Phase.VANISHED or not is_meant_for(errand.key, session)

    async def _hold_back(self, errand: Errand, head: Block, *, is_next: bool) -> None:
        """Not sent: it would claim from, or end, another renter's session.

        The session may come again; what is behind this nonce does not wait for it for ever.
        """
        since = self._astray.setdefault(errand.key, head.number)
        session = self._ledger.sessions[JobId(job_of(errand.key) or 0)]
        waited = head.number - since >= self._settings.replace_after_blocks
        if session.phase is not Phase.VANISHED or (is_next and waited):
            await self._replace(errand, head, is_astray=True)

    async def _broadcast(self, errand: Errand, attempt: TransactionSigned, head: Block) -> None:
        fees = Fees(attempt.max_fee, attempt.priority_fee)
        signed = SignedTransaction(attempt.raw, attempt.tx_hash, attempt.nonce, fees)
        handed = self._handed.get(attempt.tx_hash)
        first = head.number if handed is None else min(handed.first, head.number)
        try:
            await self._transactions.broadcast(signed)
        except SendRefused as error:
            match error.refusal:
                case SendRefusal.REPLACEMENT:
                    pass  # The pool holds another attempt, or something of the operator's.
                case SendRefusal.NONCE_USED | SendRefusal.NONCE_TOO_HIGH:
                    return  # Mined, or those before it are missing: the next step tells.
                case SendRefusal.UNDERPRICED:
                    first = BlockNumber(head.number - self._settings.replace_after_blocks)
                    self._troubles[errand.key] = Unavailable(error.message)
                case SendRefusal.NO_FUNDS:
                    self._troubles[errand.key] = InsufficientFunds(error.message)
                    return
                case SendRefusal.OTHER:
                    self._troubles[errand.key] = error
                    return
        else:
            self._troubles.pop(errand.key, None)
        self._handed[attempt.tx_hash] = _Handed(first, head.number)

    async def _replace(self, errand: Errand, head: Block, *, is_astray: bool = False) -> None:
        attempt = await self._attempts.replacement(errand, head, is_astray=is_astray)
        if attempt is None:
            newest = errand.newest
            self._handed[newest.tx_hash] = _Handed(head.number, head.number)
            if not is_astray:
                await self._broadcast(errand, newest, head)
            return
        self._has_new = True
        self._replaced.inc()
        _log.info(
            "transaction replaced",
            key=errand.key,
            nonce=errand.nonce,
            tx_hash=attempt.tx_hash,
            max_fee_gwei=attempt.max_fee / GWEI,
            cancels=attempt.is_cancel,
        )
        await self._broadcast(errand, attempt, head)

    async def _close_gaps(self, mined: int, head: Block) -> None:
        """A nonce that nobody holds blocks all after it: use it up with nothing."""
        outbox = self._ledger.outbox
        if not gaps(outbox, mined=mined, pool=mined):
            return
        pool = await self._transactions.nonce(self._signer.address, "pending")
        for nonce in gaps(outbox, mined=mined, pool=pool)[:MAX_GAPS_AT_ONCE]:
            await self._attempts.fill_gap(nonce, head)
            self._has_new = True
