"""What to ask for a million tokens: the cost of making them, and what others ask.

Pure. Amounts are USD per million tokens as exact decimals. The floor is what the electricity (and
whatever else is given per hour) and gas cost, after the treasury's share is taken from the price.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.pricing import BASIS_POINTS

MILLION = Decimal(1_000_000)
WATT_SECONDS_PER_KWH = Decimal(3_600_000)
SECONDS_PER_HOUR = Decimal(3600)
LEAST_MARGIN = Decimal("1.10")
"""Below a tenth over the cost, one idle hour a day is a loss."""
LONELY_MARGIN = Decimal(2)
"""With nobody to compare with."""
STEP = Decimal("0.001")
"""The chain's smallest difference, USD per million tokens."""


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What making tokens takes."""

    watts: Decimal
    """Drawn by the machine while it answers."""
    tokens_per_second: Decimal
    """All requests together."""
    usd_per_kwh: Decimal
    usd_per_hour: Decimal = Decimal(0)
    """Rent, wear, hosting: whatever else an hour costs."""
    gas_usd: Decimal = Decimal(0)
    """Claims and settlements, per million tokens."""


class Quantiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of the other hosts, USD per million tokens."""

    hosts: int
    least: Decimal
    quarter: Decimal
    median: Decimal
    three_quarters: Decimal
    most: Decimal


class Suggestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price and how it came about."""

    price: Decimal
    floor: Decimal
    market: Quantiles | None
    reasons: tuple[str, ...]


def cost_floor(costs: Costs, *, fee_basis_points: int) -> Decimal:
    """The price at which the host's share just pays the costs.

    Raises:
        InvalidRequest: a figure is not positive.
    """
    for name in ("watts", "tokens_per_second", "usd_per_kwh"):
        value = getattr(costs, name)
        if not value.is_finite() or value <= 0:
            raise InvalidRequest(f"{name.replace('_', ' ')} must be above 0, not {value}")
    for name in ("usd_per_hour", "gas_usd"):
        value = getattr(costs, name)
        if not value.is_finite() or value < 0:
            raise InvalidRequest(f"{name.replace('_', ' ')} must not be below 0, not {value}")
    seconds = MILLION / costs.tokens_per_second
    energy = costs.watts * seconds / WATT_SECONDS_PER_KWH * costs.usd_per_kwh
    other = costs.usd_per_hour * seconds / SECONDS_PER_HOUR
    kept = Decimal(BASIS_POINTS - fee_basis_points) / BASIS_POINTS
    return (energy + other + costs.gas_usd) / kept


def gas_per_million(gas: int, tokens: int, *, coin_usd: Decimal) -> Decimal:
    """What gas cost for a million paid tokens, USD; 0 when nothing was paid yet.

    Args:
        gas: wei spent on sessions.
        tokens: paid for.
        coin_usd: worth of one native coin.
    """
    return Decimal(gas) / 10**18 * coin_usd * MILLION / tokens if tokens else Decimal(0)


def quantiles(prices: Sequence[Decimal]) -> Quantiles | None:
    """Quartiles with linear interpolation between neighbours; None of nothing."""
    if not prices:
        return None
    ordered = sorted(prices)

    def at(share: Decimal) -> Decimal:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    return Quantiles(
        hosts=len(ordered),
        least=ordered[0],
        quarter=at(Decimal("0.25")),
        median=at(Decimal("0.5")),
        three_quarters=at(Decimal("0.75")),
        most=ordered[-1],
    )


def suggest(floor: Decimal, market: Quantiles | None) -> Suggestion:
    """A price at or above the floor with a margin, where the market is if it is higher."""
    least = floor * LEAST_MARGIN
    if market is None:
        price = floor * LONELY_MARGIN
        why = "nobody else sells this model for USD: twice the floor, lower it if nobody comes"
    elif least <= market.quarter:
        price = market.quarter
        why = "the lower quarter of the market is above the floor: cheap enough to be chosen"
    elif least <= market.most:
        price = max(least, market.median)
        why = "the lower quarter does not pay the costs: the median, or a tenth over the floor"
    else:
        price = least
        why = (
            "a tenth over your costs is more than any other host asks: few will come; more"
            " tokens a second (more requests at once) lower the floor"
        )
    rounded = max(STEP, price.quantize(STEP, rounding=ROUND_CEILING))
    return Suggestion(rounded, floor, market, (why,))
