"""The guard after a restore: what the lost part of a journal sent must be on chain and known.

A restored journal is older than what the node did. A claim that it sent afterwards is known
neither by key nor by nonce; signed again under a new nonce, both could be mined. So nothing new
is signed until no transaction of the account waits in the pool, and the ledger has applied every
event up to the block in which that was seen. What the restored journal itself holds signed goes
on meanwhile: it keeps its nonces and can be mined once at most. While a backup of another journal
is there and nobody has decided between the two, nothing new is signed either: what the other one
could still claim would be ended without a claim.
"""

from __future__ import annotations

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.units import BlockNumber
from nodeapp.evm.transactions import Transactions
from nodeapp.service.logs import get_logger

_log = get_logger(__name__)


class RestoredGuard:
    """Asked before every new signature; once it has let go it costs nothing."""

    def __init__(self, ledger: Ledger, transactions: Transactions, account: Address) -> None:
        self._ledger = ledger
        self._transactions = transactions
        self._account = account
        self._quiet_at: BlockNumber | None = None
        """The pool held nothing of ours when this was the newest block."""

    def permit(self) -> bool:
        """Asked before a call is made ready: False when its maker saw a state that was behind."""
        return not self._ledger.is_restored

    async def check(self, permit: bool) -> None:  # noqa: FBT001 (what `permit` gave)
        """Return when it is safe to sign.

        Raises:
            Unavailable: not yet, or the call was made before; read what is owed and call again.
        """
        if self._ledger.held:
            raise Unavailable(f"nothing new is signed: {self._ledger.held}")
        if permit:
            return
        if self._ledger.is_restored:
            await self._catch_up()
        raise Unavailable("the restored journal has caught up; what is owed is read again")

    async def _catch_up(self) -> None:
        if self._quiet_at is None:
            await self._look_at_pool()
        cursor = self._ledger.cursor
        if cursor is None or self._quiet_at is None or cursor.block_number < self._quiet_at:
            raise Unavailable(
                "the journal was restored from a backup: nothing new is signed before block"
                f" {self._quiet_at} is applied, so that nothing is claimed or paid twice"
            )
        await self._ledger.forget_restored()
        _log.info("restored journal has caught up", block_number=cursor.block_number)

    async def _look_at_pool(self) -> None:
        # In this order: what is mined in between counts as waiting, never as missed.
        mined = await self._transactions.nonce(self._account, "latest")
        pool = await self._transactions.nonce(self._account, "pending")
        if pool > mined:
            raise Unavailable(
                f"the journal was restored from a backup: {pool - mined} transactions of"
                f" {self._account} still wait in the pool; nothing new is signed before they are"
                " mined"
            )
        self._quiet_at = (await self._transactions.head()).number
