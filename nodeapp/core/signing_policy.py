"""What the host's key may sign, whoever asks: known contracts and functions, known payees, caps.

The last look before a signature, so that a fault elsewhere cannot empty the account. Amounts are
wei; a day is the last 24 hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from nodeapp.core.errors import Rejected
from nodeapp.core.ids import Address
from nodeapp.core.units import Wei

SELECTOR_BYTES = 4
WORD_BYTES = 32
DIGEST_PREFIX = b"\x19\x01"
DAY_SECONDS = 86_400


class Rule(StrEnum):
    """Which rule a refused request broke; few, so that they can be counted."""

    CREATION = "contract creation"
    CONTRACT = "unknown contract"
    FUNCTION = "unknown function"
    VALUE = "value sent along"
    PAYEE = "unknown payee"
    SPENDER = "unknown spender"
    GAS_CAP = "gas per day"
    PAYOUT_CAP = "payouts per day"
    MESSAGE = "unknown message"


class SigningRefused(Rejected):
    """The policy does not let the key sign this; `rule` says which part of it."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(f"not signed, {rule}: {message}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class SigningPolicy:
    """The allowed; caps of 0 do not limit."""

    account: Address
    functions: Mapping[Address, frozenset[bytes]]
    """Selectors by contract; calls carry no value."""
    tokens: frozenset[Address]
    """Where transfer(payee, …) is allowed."""
    spenders: Mapping[Address, Address]
    """Token to whom approve(…) is allowed."""
    payees: frozenset[Address]
    domain_separator: bytes
    """Of the messages that may be signed (EIP-712)."""
    max_gas_per_day: Wei
    max_payout_per_day: Wei


@dataclass(frozen=True, slots=True)
class Request:
    """A transaction to be signed; `gas_cost` is the most it may pay for gas."""

    to: Address | None
    value: Wei
    data: bytes
    gas_cost: Wei


@dataclass(frozen=True, slots=True)
class Spent:
    """What was signed in the last day."""

    gas: Wei
    payouts: Wei


TRANSFER = bytes.fromhex("a9059cbb")
"""transfer(address,uint256)"""
APPROVE = bytes.fromhex("095ea7b3")
"""approve(address,uint256)"""


def check_transaction(policy: SigningPolicy, request: Request, spent: Spent) -> None:
    """Let a transaction pass.

    Raises:
        SigningRefused: it breaks a rule.
    """
    if request.to is None:
        raise SigningRefused(Rule.CREATION, "this account creates no contracts")
    if request.data:
        _check_call(policy, request, request.to)
    else:
        _check_payment(policy, request, request.to, spent)
    gas = spent.gas + request.gas_cost
    if policy.max_gas_per_day and gas > policy.max_gas_per_day:
        raise SigningRefused(
            Rule.GAS_CAP,
            f"{gas} wei of gas in a day, chain.max_gas_per_day is {policy.max_gas_per_day}",
        )


def check_message(policy: SigningPolicy, message: bytes) -> None:
    """Let a message pass whose keccak256 is to be signed.

    Raises:
        SigningRefused: it is not one of this marketplace's EIP-712 messages.
    """
    prefix = DIGEST_PREFIX + policy.domain_separator
    if len(message) != len(prefix) + WORD_BYTES or not message.startswith(prefix):
        raise SigningRefused(Rule.MESSAGE, "no EIP-712 message of this marketplace")


def _check_call(policy: SigningPolicy, request: Request, to: Address) -> None:
    if request.value:
        raise SigningRefused(Rule.VALUE, f"{request.value} wei to contract {to}")
    selector = request.data[:SELECTOR_BYTES]
    if selector in policy.functions.get(to, frozenset()):
        return
    if to in policy.tokens and selector == TRANSFER:
        payee = _address(request.data)
        if payee not in {address.lower() for address in policy.payees}:
            raise SigningRefused(Rule.PAYEE, f"{payee} is not chain.payout_address")
        return
    if to in policy.spenders and selector == APPROVE:
        spender = _address(request.data)
        if spender != policy.spenders[to].lower():
            raise SigningRefused(Rule.SPENDER, f"{spender} may not spend {to}")
        return
    is_known = to in policy.functions or to in policy.tokens or to in policy.spenders
    raise SigningRefused(
        Rule.FUNCTION if is_known else Rule.CONTRACT, f"{to} function 0x{selector.hex()}"
    )


def _check_payment(policy: SigningPolicy, request: Request, to: Address, spent: Spent) -> None:
    if to == policy.account and request.value == 0:
        return  # uses a nonce up
    if to not in policy.payees:
        raise SigningRefused(Rule.PAYEE, f"{to} is not chain.payout_address")
    payouts = spent.payouts + request.value
    if policy.max_payout_per_day and payouts > policy.max_payout_per_day:
        raise SigningRefused(
            Rule.PAYOUT_CAP,
            f"{payouts} wei in a day, chain.max_payout_per_day is {policy.max_payout_per_day}",
        )


def _address(data: bytes) -> str:
    """The first argument, in lower case."""
    return "0x" + data[SELECTOR_BYTES + 12 : SELECTOR_BYTES + WORD_BYTES].hex()
