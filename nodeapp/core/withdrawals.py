"""Pulling earnings out of the contract: what is taken when, and which sessions it is booked to.

One withdrawal takes an asset's whole balance. Which sessions it covers is fixed and journalled
before anything is signed, so a crash repeats the same amounts. Balances are read at a confirmed
block up to which all ends of sessions are known: what is missing there has left the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, JobId
from nodeapp.core.session import Session
from nodeapp.core.units import BaseUnits, BlockTime, Wei

NATIVE = Address("0x0000000000000000000000000000000000000000")
WITHDRAWAL_GAS = 150_000
"""About what a withdrawal and a payout use together."""
MAX_AMOUNT = 2**63 - 1
"""Of one withdrawal: the journal's numbers have 64 bits, 19 native coins in wei have more."""


class WithdrawalPlanned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Amounts, sessions and payee are fixed before anything is signed."""

    number: int
    asset: Address
    amount: BaseUnits
    """What is taken out: the whole balance as a rule, which may be more than our shares."""
    job_ids: tuple[JobId, ...]
    gone: tuple[JobId, ...]
    """Sessions whose share was taken out before, by other software with the same key."""
    payout: Address
    """Who gets it; empty: it stays with the host account."""
    at: BlockTime


class WithdrawalFinished(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Everything of it is mined and booked, or it was given up and is planned anew."""

    number: int
    reason: str = ""


WithdrawalChange = WithdrawalPlanned | WithdrawalFinished


class Withdrawals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It is stored: a new field needs a default."""

    open: dict[Address, WithdrawalPlanned] = {}
    count: int = 0
    last: dict[Address, WithdrawalPlanned] = {}
    """The newest of each asset, finished or not."""


@dataclass(frozen=True, slots=True)
class WithdrawalPolicy:
    """When taking earnings out is worth its gas."""

    interval_seconds: int
    least_native: Wei
    least_asset: BaseUnits
    max_gas_percent: float
    native_price: BaseUnits
    """Base units of the asset for one native coin; 0: unknown, gas is not weighed against it."""


def apply(state: Withdrawals, change: WithdrawalChange) -> Withdrawals:
    """The state after one change.

    Raises:
        InvalidRequest: it does not fit: two at once for an asset, or none to finish.
    """
    match change:
        case WithdrawalPlanned(asset=asset):
            if asset in state.open or change.number != state.count:
                raise InvalidRequest(f"withdrawal {change.number} of {asset} does not fit")
            return Withdrawals(
                {**state.open, asset: change}, state.count + 1, {**state.last, asset: change}
            )
        case WithdrawalFinished(number=number):
            left = {a: plan for a, plan in state.open.items() if plan.number != number}
            if len(left) == len(state.open):
                raise InvalidRequest(f"withdrawal {number} is not open")
            return msgspec.structs.replace(state, open=left)


def withdraw_key(plan: WithdrawalPlanned) -> str:
    """Of the transaction that takes it out."""
    return f"withdraw/all/{plan.number}"


def payout_key(plan: WithdrawalPlanned) -> str:
    """Of the transaction that sends it on."""
    return f"payout/all/{plan.number}"


def owed(sessions: Sequence[Session], asset: Address) -> tuple[Session, ...]:
    """Ended sessions whose share is not booked as withdrawn, by job id."""
    found = [
        session
        for session in sessions
        if session.terms.asset == asset
        and session.ended is not None
        and session.host_earnings > 0
        and session.withdrawn is None
    ]
    return tuple(sorted(found, key=lambda session: session.terms.job_id))


def is_due(state: Withdrawals, asset: Address, now: BlockTime, policy: WithdrawalPolicy) -> bool:
    """Whether the schedule allows another withdrawal of the asset."""
    last = state.last.get(asset)
    return asset not in state.open and (last is None or now - last.at >= policy.interval_seconds)


def is_worth_it(amount: BaseUnits, asset: Address, gas_cost: Wei, policy: WithdrawalPolicy) -> bool:
    """Whether the amount is over its threshold and not eaten up by gas."""
    is_native = asset == NATIVE
    least = policy.least_native if is_native else policy.least_asset
    cost = gas_cost if is_native else gas_cost * policy.native_price // 10**18
    return amount > 0 and amount >= least and 100 * cost <= policy.max_gas_percent * amount


def plan_withdrawal(
    state: Withdrawals,
    sessions: Sequence[Session],
    *,
    asset: Address,
    balance: BaseUnits,
    payout: Address,
    now: BlockTime,
) -> WithdrawalPlanned:
    """Take the whole balance for as many sessions as it covers, the newest first.

    Over MAX_AMOUNT a part of it is taken; sessions that it has no room for wait for the next.

    Args:
        state: earlier withdrawals.
        sessions: `owed`, with every end up to the block of the balance.
        asset: what is taken out.
        balance: credit in the earnings contract at that block.
        payout: who gets it, or empty.
        now: time of that block.
    """
    left, room = int(balance), MAX_AMOUNT
    covered: list[JobId] = []
    gone: list[JobId] = []
    for session in reversed(sessions):
        share = session.host_earnings
        if share > left:
            gone.append(session.terms.job_id)
            continue
        left -= share
        if share <= room:
            room -= share
            covered.append(session.terms.job_id)
    amount = MAX_AMOUNT - room + min(left, room)
    return WithdrawalPlanned(
        number=state.count,
        asset=asset,
        amount=BaseUnits(amount),
        job_ids=tuple(sorted(covered)),
        gone=tuple(sorted(gone)),
        payout=payout,
        at=now,
    )
