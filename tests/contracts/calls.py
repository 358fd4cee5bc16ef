"""Calls of the marketplace's contracts that nothing of the product makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nodeapp.core.ids import NATIVE, Address, ModelId
from nodeapp.core.units import Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.calls import Calls, SessionTerms, model_bytes


@dataclass(frozen=True, slots=True)
class DelegateLimits:
    """What a delegate may spend of its owner's money; 0, NATIVE and None mean no limit.

    Amounts are base units, `valid_until` is block time in seconds.
    """

    max_per_session: int = 0
    total_cap: int = 0
    valid_until: int = 0
    host: Address = NATIVE
    model_id: ModelId | None = None


class AllCalls(Calls):
    """With balances, delegates, the native coin, and the roles of owner and slasher."""

    def withdraw_all_earnings(self, asset: Address) -> Call:
        """Pull all credited earnings of one asset."""
        return self._earnings("withdrawAll", asset)

    def withdraw_several_earnings(self, assets: Sequence[Address]) -> Call:
        """Pull all credited earnings of several assets."""
        return self._earnings("withdrawMultiple", list(assets))

    def create_session_native(
        self, host: Address, model_id: ModelId, deposit: Wei, terms: SessionTerms
    ) -> Call:
        """Open a session paid in the native coin."""
        call = self._marketplace(
            "createSessionJobForModel", host, model_bytes(model_id), *terms.arguments()
        )
        return replace(call, value=deposit)

    def create_session_from_deposit(
        self, host: Address, model_id: ModelId, asset: Address, deposit: int, terms: SessionTerms
    ) -> Call:
        """Open a session paid from the renter's balance in the marketplace."""
        return self._marketplace(
            "createSessionFromDepositForModel",
            model_bytes(model_id),
            host,
            asset,
            deposit,
            *terms.arguments(),
        )

    def create_session_as_delegate(
        self,
        payer: Address,
        host: Address,
        model_id: ModelId,
        *,
        asset: Address,
        deposit: int,
        terms: SessionTerms,
    ) -> Call:
        """Open a session that `payer` owns and pays; it authorised the sender and approved us."""
        return self._marketplace(
            "createSessionForModelAsDelegate",
            payer,
            model_bytes(model_id),
            host,
            asset,
            deposit,
            *terms.arguments(),
        )

    def configure_delegate(self, delegate: Address, limits: DelegateLimits) -> Call:
        """Let another account open sessions with the sender's money, within limits."""
        model = bytes(32) if limits.model_id is None else model_bytes(limits.model_id)
        return self._marketplace(
            "configureDelegate",
            delegate,
            limits.max_per_session,
            limits.total_cap,
            limits.valid_until,
            limits.host,
            model,
        )

    def authorize_delegate(self, delegate: Address, *, authorized: bool) -> Call:
        """Switch a delegate on or off; limits and what it spent stay, an expiry is lifted."""
        return self._marketplace("authorizeDelegate", delegate, authorized)

    def deposit_native(self, amount: Wei) -> Call:
        """Put native coin into the marketplace."""
        return replace(self._marketplace("depositNative"), value=amount)

    def deposit_asset(self, asset: Address, amount: int) -> Call:
        """Put an asset into the marketplace; approve it first."""
        return self._marketplace("depositToken", asset, amount)

    def withdraw_native(self, amount: Wei) -> Call:
        """Take native coin back out."""
        return self._marketplace("withdrawNative", amount)

    def withdraw_asset(self, asset: Address, amount: int) -> Call:
        """Take an asset back out."""
        return self._marketplace("withdrawToken", asset, amount)

    def pause(self) -> Call:
        """Stop new sessions and claims; sessions can still be ended."""
        return self._marketplace("pause")

    def unpause(self) -> Call:
        """Accept sessions and claims again."""
        return self._marketplace("unpause")

    def slash(self, host: Address, amount: int, *, evidence_cid: str, reason: str) -> Call:
        """Take FAB base units, at most half of the stake; the slashing authority only."""
        return self._nodes("slashStake", host, amount, evidence_cid, reason)
