"""How this process sends transactions, put together from its settings."""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.chain.gas import GasWatch
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.chain.withdrawals import Withdrawer
from nodeapp.core.audit import AuditSink, Unrecorded
from nodeapp.core.fees import GWEI, FeePolicy
from nodeapp.core.ids import Address
from nodeapp.core.units import BaseUnits, Wei
from nodeapp.core.withdrawals import WithdrawalPolicy
from nodeapp.evm.abi import checksum
from nodeapp.evm.calls import Calls
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.signers import Signer
from nodeapp.evm.transactions import Transactions
from nodeapp.service.clock import Clock
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings


@dataclass(frozen=True, slots=True)
class Sending:
    """The two that send, and who watches what it costs."""

    queue: TransactionQueue
    gas: GasWatch
    withdrawer: Withdrawer


def build_sending(  # noqa: PLR0913  # keywords, each a part of its own
    settings: ChainSettings,
    *,
    ledger: Ledger,
    contracts: Contracts,
    signer: Signer,
    clock: Clock,
    metrics: Metrics,
    audit: AuditSink | None = None,
) -> Sending:
    """Queue, gas watch and withdrawer of one account."""
    transactions = Transactions(contracts.provider)
    gas = GasWatch(
        transactions,
        ledger,
        signer.address,
        warning_claims=settings.gas_warning_claims,
        clock=clock,
        metrics=metrics,
    )
    queue = TransactionQueue(
        ledger,
        transactions,
        signer,
        confirmations=settings.confirmations,
        metrics=metrics,
        settings=queue_settings(settings),
    )
    withdrawer = Withdrawer(
        ledger=ledger,
        queue=queue,
        contracts=contracts,
        calls=Calls(contracts.deployment),
        host=signer.address,
        payout=checksum(settings.payout_address) if settings.payout_address else Address(""),
        policy=WithdrawalPolicy(
            interval_seconds=settings.withdraw_interval_seconds,
            least_native=Wei(settings.withdraw_least_native),
            least_asset=BaseUnits(settings.withdraw_least_asset),
            max_gas_percent=settings.withdraw_max_gas_percent,
            native_price=BaseUnits(settings.native_coin_price),
        ),
        is_automatic=settings.withdraw,
        audit=audit or Unrecorded(),
    )
    return Sending(queue, gas, withdrawer)


def queue_settings(settings: ChainSettings) -> QueueSettings:
    """The [chain] section's policy of sending."""
    return QueueSettings(
        fees=FeePolicy(
            Wei(int(settings.max_fee_gwei * GWEI)),
            Wei(int(settings.max_priority_fee_gwei * GWEI)),
            base_fee_percent=settings.base_fee_percent,
            bump_permille=round(settings.fee_bump_percent * 10),
        ),
        replace_after_blocks=settings.replace_after_blocks,
        max_in_flight=settings.max_in_flight,
    )
