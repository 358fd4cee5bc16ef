"""What a transaction offers for gas (EIP-1559), and what its replacement must offer.

All amounts are wei per gas. Pools take a replacement only when both fees are higher by their
price bump: 10 % with most, 12.5 % covers all that are known.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.core.errors import Unavailable
from nodeapp.core.units import Wei

GWEI = 10**9


@dataclass(frozen=True, slots=True)
class Fees:
    """The two fee fields of one attempt; `max_fee` includes the priority fee."""

    max_fee: Wei
    priority_fee: Wei


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """What the operator allows.

    `base_fee_percent`: the base fee that is offered, in percent of the newest block's; 200
    outlasts six full blocks in a row. `bump_permille`: how much more a replacement offers.
    """

    max_fee: Wei
    max_priority_fee: Wei
    base_fee_percent: int = 200
    bump_permille: int = 125


def first_fees(base_fee: Wei, suggested: Wei, policy: FeePolicy) -> Fees:
    """Fees of a first attempt.

    Args:
        base_fee: of the newest block.
        suggested: priority fee that the endpoint suggests.
        policy: caps.

    Raises:
        Unavailable: the base fee alone is above the cap; it may fall again.
    """
    if base_fee > policy.max_fee:
        raise Unavailable(
            f"base fee {base_fee / GWEI:g} gwei is above chain.max_fee_gwei"
            f" {policy.max_fee / GWEI:g}; raise it or wait until gas is cheaper"
        )
    tip = min(suggested, policy.max_priority_fee)
    wanted = base_fee * policy.base_fee_percent // 100 + tip
    return _fees(min(wanted, policy.max_fee), tip)


def replacement_fees(
    previous: Fees, base_fee: Wei, suggested: Wei, policy: FeePolicy
) -> Fees | None:
    """Fees that a pool takes in place of `previous`; None when the caps do not allow them."""
    lowest_max = _bumped(previous.max_fee, policy)
    lowest_tip = _bumped(previous.priority_fee, policy)
    if lowest_max > policy.max_fee or lowest_tip > policy.max_priority_fee:
        return None
    tip = max(lowest_tip, min(suggested, policy.max_priority_fee))
    wanted = base_fee * policy.base_fee_percent // 100 + tip
    return _fees(min(max(lowest_max, wanted), policy.max_fee), tip)


def _bumped(fee: int, policy: FeePolicy) -> int:
    """Rounded up, and by 1 wei at least: a pool compares exactly."""
    return max(fee + 1, -(-fee * (1000 + policy.bump_permille) // 1000))


def _fees(max_fee: int, tip: int) -> Fees:
    return Fees(Wei(max_fee), Wei(min(tip, max_fee)))
