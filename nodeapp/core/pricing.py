"""Money arithmetic, rounded exactly as the marketplace contract rounds (integer floor division).

Source: JobMarketplace settlement: pay = tokens * price // 1000, fee = pay * bps // 10000.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.core.units import BaseUnits, PricePerToken, Tokens

PRICE_PRECISION = 1000
BASIS_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one deposit is divided; the three parts sum to it."""

    host: BaseUnits
    treasury: BaseUnits
    refund: BaseUnits


def cost(tokens: Tokens, price: PricePerToken) -> BaseUnits:
    """Price of `tokens`, base units, rounded down."""
    return BaseUnits(tokens * price // PRICE_PRECISION)


def affordable_tokens(deposit: BaseUnits, price: PricePerToken) -> Tokens:
    """The most tokens the contract accepts for a deposit: deposit * 1000 // price."""
    if price <= 0:
        return Tokens(0)
    return Tokens(deposit * PRICE_PRECISION // price)


def settle(
    deposit: BaseUnits, tokens: Tokens, price: PricePerToken, *, fee_basis_points: int
) -> Settlement:
    """Divide a deposit after `tokens` proven tokens.

    Raises:
        ValueError: the tokens cost more than the deposit (the contract never accepts that).
    """
    pay = cost(tokens, price)
    if pay > deposit:
        raise ValueError(f"{tokens} tokens cost {pay}, more than the deposit {deposit}")
    treasury = pay * fee_basis_points // BASIS_POINTS
    return Settlement(BaseUnits(pay - treasury), BaseUnits(treasury), BaseUnits(deposit - pay))
