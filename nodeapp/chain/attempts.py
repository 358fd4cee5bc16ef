"""What is signed for a purpose: nonce, gas and fees; in the journal before anything of it leaves.

The queue calls it under its lock, because choosing a nonce, signing and journalling are one.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import Unavailable
from nodeapp.core.fees import GWEI, FeePolicy, Fees, first_fees, replacement_fees
from nodeapp.core.outbox import Errand, TransactionDropped, TransactionSigned, free_nonce
from nodeapp.core.units import Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Block
from nodeapp.evm.refusals import InsufficientFunds
from nodeapp.evm.signers import Signer
from nodeapp.evm.transactions import CANCEL_GAS, Transactions
from nodeapp.service.logs import get_logger

MAX_FOREIGN_PENDING = 64
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Order:
    """What an attempt is signed for."""

    key: str
    nonce: int
    is_payment: bool = False
    is_cancel: bool = False


class Attempts:
    """Signs for one account; what it journalled leaves with the queue's next push."""

    def __init__(
        self, ledger: Ledger, transactions: Transactions, signer: Signer, policy: FeePolicy
    ) -> None:
        self._ledger = ledger
        self._transactions = transactions
        self._signer = signer
        self._policy = policy

    async def first(self, key: str, call: Call, *, is_payment: bool) -> None:
        """Sign for a key that has no nonce yet.

        Raises:
            Reverted: the contract would refuse it.
            InsufficientFunds: the account cannot pay for it.
            Unavailable: it may not be tried again yet, no endpoint answered, or gas costs more
                than allowed.
        """
        outbox = self._ledger.outbox
        ended = outbox.last_end(key)
        if is_payment and isinstance(ended, TransactionDropped):
            raise Unavailable(
                f"{key} failed in block {ended.block_number} ({ended.reason}); it is tried again"
                " when that block is final"
            )
        address = self._signer.address
        gas = await self._transactions.estimate(call, address)
        fees = await self._market()
        await self._check_funds(gas * fees.max_fee + call.value)
        mined = await self._transactions.nonce(address, "latest")
        pool = await self._transactions.nonce(address, "pending")
        if pool - mined > MAX_FOREIGN_PENDING + len(outbox.pending):
            raise Unavailable(
                f"the pool counts {pool - mined} waiting transactions of {address}, only"
                f" {len(outbox.pending)} are ours; nothing is sent before they are mined"
            )
        nonce = free_nonce(outbox, mined=mined, pool=pool)
        await self._add(_Order(key, nonce, is_payment=is_payment), call, gas=gas, fees=fees)

    async def replacement(
        self, errand: Errand, head: Block, *, is_astray: bool
    ) -> TransactionSigned | None:
        """The same purpose, or nothing if it became pointless, with the same nonce for more.

        Args:
            errand: its newest attempt waits too long.
            head: for its base fee.
            is_astray: whatever it would do now, it is not what it was meant for.

        Returns:
            None: the fee cap is reached; nothing was signed.
        """
        first = self._transactions.decode(errand.attempts[0].raw)
        offered = self._transactions.decode(errand.newest.raw).fees
        tip = await self._transactions.suggested_tip()
        fees = replacement_fees(offered, head.base_fee, tip, self._policy)
        if fees is None:
            _log.warning(
                "transaction waits, fee cap reached",
                key=errand.key,
                nonce=errand.nonce,
                max_fee_gwei=offered.max_fee / GWEI,
                base_fee_gwei=head.base_fee / GWEI,
            )
            return None
        is_cancel = (
            is_astray or errand.is_cancelled or await self._is_pointless(errand.key, first.call)
        )
        return await self._add(
            _Order(errand.key, errand.nonce, is_payment=errand.is_payment, is_cancel=is_cancel),
            self._nothing() if is_cancel else first.call,
            gas=CANCEL_GAS if is_cancel else first.gas,
            fees=fees,
        )

    async def fill_gap(self, nonce: int, head: Block) -> None:
        """Use up a nonce that nobody holds, with nothing."""
        tip = await self._transactions.suggested_tip()
        fees = first_fees(head.base_fee, tip, self._policy)
        _log.warning("nonce gap filled", nonce=nonce)
        order = _Order(f"gap/{nonce}", nonce, is_cancel=True)
        await self._add(order, self._nothing(), gas=CANCEL_GAS, fees=fees)

    async def _add(self, order: _Order, call: Call, *, gas: int, fees: Fees) -> TransactionSigned:
        """Sign one attempt and journal it."""
        signed = await self._transactions.prepare(
            call, self._signer, order.nonce, gas=gas, fees=fees
        )
        attempt = TransactionSigned(
            order.key,
            order.nonce,
            signed.hash,
            signed.raw,
            fees.max_fee,
            fees.priority_fee,
            is_cancel=order.is_cancel,
            is_payment=order.is_payment,
            value=Wei(call.value),
        )
        await self._ledger.record(attempt)
        return attempt

    async def _market(self) -> Fees:
        head = await self._transactions.head()
        tip = await self._transactions.suggested_tip()
        return first_fees(head.base_fee, tip, self._policy)

    async def _check_funds(self, need: int) -> None:
        balance = await self._transactions.balance(self._signer.address)
        if balance < need:
            raise InsufficientFunds(
                f"account {self._signer.address} holds {balance / 10**18:.9f} native coin, a"
                f" transaction needs up to {need / 10**18:.9f} for gas; send some to it"
            )

    async def _is_pointless(self, key: str, call: Call) -> bool:
        try:
            await self._transactions.simulate(call, self._signer.address, "latest")
        except Reverted as error:
            _log.warning("transaction cancelled", key=key, reason=error.reason)
            return True
        return False

    def _nothing(self) -> Call:
        return Call(self._signer.address, "cancel", b"", 0)
