"""Amounts as people read and write them: stakes, and prices per million tokens.

On chain a price is base units per token times 1000; the two convert exactly or not at all.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address
from nodeapp.core.pricing import PRICE_PRECISION
from nodeapp.core.units import PricePerToken

MILLION = 1_000_000
USD_DECIMALS = 6
NATIVE_DECIMALS = 18
FAB_UNIT = 10**18


def is_native(asset: Address) -> bool:
    """Whether an asset's address stands for the native coin."""
    return int(asset, 16) == 0


def fab(amount: int) -> str:
    """Stake in whole FAB."""
    return f"{Decimal(amount) / FAB_UNIT:f}"


def asset_name(asset: Address) -> str:
    """What people call it."""
    return "native coin" if is_native(asset) else "USD"


def amount_of(price: int, asset: Address) -> str:
    """An on-chain price as an amount per million tokens."""
    unit = 10 ** (NATIVE_DECIMALS if is_native(asset) else USD_DECIMALS)
    amount = Decimal(price) * MILLION / PRICE_PRECISION / unit
    return f"{amount.normalize():f} {asset_name(asset)}"


def price_of(amount: str, *, native: bool) -> PricePerToken:
    """An amount per million tokens as the on-chain price, exactly.

    Args:
        amount: decimal text, USD or native coin per million tokens; > 0.
        native: in the native coin.

    Raises:
        InvalidRequest: not a positive number, or finer than the chain can say.
    """
    try:
        value = Decimal(amount)
    except InvalidOperation as error:
        raise InvalidRequest(f"{amount!r} is not an amount per million tokens") from error
    if not value.is_finite() or value <= 0 or value > 10**9:
        raise InvalidRequest(f"{amount!r} is not an amount per million tokens")
    unit = 10 ** (NATIVE_DECIMALS if native else USD_DECIMALS)
    price = value * unit * PRICE_PRECISION / MILLION
    if price != int(price):
        step = Decimal(MILLION) / unit / PRICE_PRECISION
        raise InvalidRequest(f"{amount} is finer than the chain's step of {step:f} per million")
    return PricePerToken(int(price))
