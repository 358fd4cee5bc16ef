"""Open a paid session: approve USDC, lock the deposit in the marketplace."""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.core.errors import PaymentRequired, Unavailable
from nodeapp.core.ids import Address, JobId, TxHash
from nodeapp.core.pricing import cost
from nodeapp.core.units import BaseUnits, PricePerToken, Tokens
from nodeapp.evm.accounts import Wallet
from nodeapp.evm.calls import Calls, SessionTerms, approve
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.events import SessionCreated
from nodeapp.evm.transactions import Transactions
from nodeapp.renter.settings import RenterSettings
from nodeapp.wire.capability import ModelOffer


@dataclass(frozen=True, slots=True)
class PaidSession:
    """The session as the receipt of its creation tells it."""

    job_id: JobId
    deposit: BaseUnits
    tx_hash: TxHash
    gas_used: int


async def open_paid_session(
    contracts: Contracts, wallet: Wallet, host: Address, offer: ModelOffer, settings: RenterSettings
) -> PaidSession:
    """Lock `settings.deposit` for one session with one host.

    Raises:
        PaymentRequired: the wallet holds too little USDC, or the deposit covers no interval.
        Rejected: the marketplace refuses (with its reason).
        Unavailable: not mined in time.
    """
    deposit = BaseUnits(settings.deposit)
    await _check_funds(contracts, wallet, offer, settings)
    marketplace = contracts.deployment.marketplace
    transactions = Transactions(contracts.provider)
    gas_used = 0
    if await contracts.allowance(offer.asset, wallet.address, marketplace) < deposit:
        approved = await transactions.send(approve(offer.asset, marketplace, deposit), wallet)
        gas_used += approved.gas_used
    terms = SessionTerms(
        price_per_token=PricePerToken(offer.price_per_token),
        max_duration_seconds=settings.max_duration_seconds,
        proof_interval=Tokens(settings.proof_interval_tokens),
        proof_timeout_seconds=settings.proof_timeout_seconds,
    )
    call = Calls(contracts.deployment).create_session(
        host, offer.model_id, offer.asset, deposit, terms
    )
    receipt = await transactions.send(call, wallet)
    for event in receipt.events(marketplace):
        if isinstance(event, SessionCreated):
            return PaidSession(event.job_id, deposit, receipt.hash, gas_used + receipt.gas_used)
    raise Unavailable(f"transaction {receipt.hash} opened no session")


async def _check_funds(
    contracts: Contracts, wallet: Wallet, offer: ModelOffer, settings: RenterSettings
) -> None:
    balance = await contracts.asset_balance(offer.asset, wallet.address)
    if balance < settings.deposit:
        raise PaymentRequired(
            f"wallet {wallet.address} holds {balance} base units of USDC,"
            f" the deposit is {settings.deposit}; send USDC to it or lower the deposit"
        )
    if await contracts.provider.native_balance(wallet.address) == 0:
        raise PaymentRequired(f"wallet {wallet.address} has no native coin to pay gas with")
    interval = cost(Tokens(settings.proof_interval_tokens), PricePerToken(offer.price_per_token))
    if interval > settings.deposit:
        raise PaymentRequired(
            f"deposit {settings.deposit} does not cover one interval, {interval} base units"
        )
