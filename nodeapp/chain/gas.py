"""How many more claims the host's native coin pays for, told before it hurts."""

from __future__ import annotations

from nodeapp.chain.ledger import Ledger
from nodeapp.core.ids import Address
from nodeapp.core.units import Wei
from nodeapp.evm.transactions import Transactions
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics

LOOK_SECONDS = 30.0
CLAIM_GAS = 320_000
"""Of the dearest claim seen on the marketplace; used until one of our own is mined."""
_log = get_logger(__name__)


class GasWatch:
    """`step` as often as you like; it asks every LOOK_SECONDS."""

    def __init__(
        self,
        transactions: Transactions,
        ledger: Ledger,
        account: Address,
        *,
        warning_claims: int,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._transactions = transactions
        self._ledger = ledger
        self._account = account
        self._warning_claims = warning_claims
        self._clock = clock
        self._looked_at = float("-inf")
        self._balance_gauge = metrics.gauge("gas_balance_wei", "Native coin for gas, wei")
        self._claims_gauge = metrics.gauge("gas_claims_left", "Claims that the native coin pays")
        self.balance: Wei | None = None
        """Native coin at the last look; None before the first."""
        self.claims_left: int | None = None

    @property
    def is_low(self) -> bool:
        """Fewer claims can be paid than the operator wants to be warned of."""
        return self.claims_left is not None and self.claims_left < self._warning_claims

    def summary(self) -> str:
        """What to do, or "" when there is enough."""
        if not self.is_low or self.balance is None:
            return ""
        return (
            f"gas for about {self.claims_left} claims left"
            f" ({self.balance / 10**18:.6f} native coin): send some to {self._account}"
        )

    async def step(self) -> None:
        """Look at balance and gas price if it is time.

        Raises:
            Unavailable: no endpoint answered.
        """
        now = self._clock.monotonic_seconds()
        if now - self._looked_at < LOOK_SECONDS:
            return
        was_low = self.is_low
        head = await self._transactions.head()
        tip = await self._transactions.suggested_tip()
        balance = await self._transactions.balance(self._account)
        self._looked_at = now
        self.balance = balance
        # A price of 0 is a chain that gives gas away.
        self.claims_left = balance // max(1, self._claim_gas() * (head.base_fee + tip))
        self._balance_gauge.set(balance)
        self._claims_gauge.set(self.claims_left)
        if self.is_low and not was_low:
            _log.warning(
                "gas runs low",
                account=self._account,
                balance_wei=balance,
                claims_left=self.claims_left,
            )

    def _claim_gas(self) -> int:
        mined = (
            end.gas_used
            for key, end in reversed(self._ledger.mined.items())
            if key.startswith("claim/")
        )
        return next(mined, CLAIM_GAS)
