"""One transaction at a time for one wallet: simulate, sign, journal, send, wait, judge.

A key names the purpose ("claim/7/0"). What was signed for a key is in the journal before it is
sent, so after a crash the same bytes are sent again: no purpose is served twice.
"""

from __future__ import annotations

import asyncio

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.outbox import TransactionDropped, TransactionMined, TransactionSigned
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.transactions import SignedTransaction, Transactions
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics

MINED_SECONDS = 120.0
_log = get_logger(__name__)


class TransactionQueue:
    """The only sender of the wallet's transactions."""

    def __init__(
        self,
        ledger: Ledger,
        transactions: Transactions,
        wallet: Wallet,
        *,
        confirmations: int,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._transactions = transactions
        self._wallet = wallet
        self._confirmations = max(1, confirmations)
        self._lock = asyncio.Lock()  # guards the account's nonce order
        self._mined = metrics.counter("transactions_mined_total", "Own transactions mined")
        self._gas = metrics.counter("gas_used_total", "Gas of own transactions")

    async def execute(self, key: str, call: Call) -> TransactionMined:
        """Do it once; a repeated call returns the first result.

        Raises:
            Rejected: the contract refuses; the chain's state must be read again.
            Unavailable: not mined in time; call again later.
        """
        async with self._lock:
            done = self._ledger.mined.get(key)
            if done is not None:
                return done
            signed = await self._signed(key, call)
            try:
                await self._transactions.broadcast(signed)
                receipt = await self._transactions.wait_mined(signed.hash, 1, MINED_SECONDS)
            except Unavailable:
                raise
            except Rejected as error:
                await self._ledger.record(TransactionDropped(key, error.message))
                raise
        if self._confirmations > 1:
            # Its nonce is used: the next one need not wait until this one is deep enough.
            receipt = await self._transactions.wait_mined(
                signed.hash, self._confirmations, MINED_SECONDS
            )
        mined = TransactionMined(key, signed.hash, receipt.gas_used, receipt.block_number)
        await self._ledger.record(mined)
        self._mined.inc()
        self._gas.inc(receipt.gas_used)
        _log.info("transaction mined", key=key, tx_hash=signed.hash, gas=receipt.gas_used)
        return mined

    async def _signed(self, key: str, call: Call) -> SignedTransaction:
        errand = self._ledger.outbox.pending.get(key)
        if errand is not None:
            known = errand.newest
            return SignedTransaction(known.raw, known.tx_hash, known.nonce)
        nonce = await self._transactions.nonce(self._wallet.address)
        signed = await self._transactions.prepare(call, self._wallet, nonce)
        await self._ledger.record(TransactionSigned(key, nonce, signed.hash, signed.raw))
        return signed
