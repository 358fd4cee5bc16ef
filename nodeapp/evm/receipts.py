"""Transactions and receipts as an endpoint tells them, decoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nodeapp.core.ids import Address, TxHash
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.errors import WrongShape
from nodeapp.evm.events import MarketplaceEvent, decode_logs
from nodeapp.evm.rpc import as_address, as_hash, as_logs, as_object, as_quantity, field


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a mined transaction did; `gas_price` is wei per gas as paid."""

    hash: TxHash
    succeeded: bool
    block_number: BlockNumber
    block_hash: str
    gas_used: int
    gas_price: Wei
    contract: Address | None
    raw_logs: tuple[Mapping[str, Any], ...]
    data_fee: Wei
    """What a rollup charges for publishing it (`l1Fee`), beside the gas."""

    @property
    def cost(self) -> Wei:
        """Wei paid in all."""
        return Wei(self.gas_used * self.gas_price + self.data_fee)

    def events(self, marketplace: Address) -> tuple[MarketplaceEvent, ...]:
        """The marketplace's events in it."""
        return decode_logs(self.raw_logs, marketplace)


@dataclass(frozen=True, slots=True)
class KnownTransaction:
    """What is used of a transaction that an endpoint knows; `call` repeats it by eth_call."""

    hash: TxHash
    sender: Address
    nonce: int
    call: Mapping[str, object]


def read_transaction(result: object) -> KnownTransaction | None:
    """Of eth_getTransactionByHash or a block; None: not known."""
    if result is None:
        return None
    fields = as_object(result)
    call = {name: fields.get(name) for name in ("from", "to", "value")}
    return KnownTransaction(
        TxHash(field(fields, "hash", as_hash)),
        field(fields, "from", as_address),
        field(fields, "nonce", as_quantity),
        {**call, "data": fields.get("input")},
    )


def read_receipt(tx_hash: TxHash, result: object) -> Receipt | None:
    """Of eth_getTransactionReceipt; None: not mined.

    Raises:
        WrongShape: it is none, or another transaction's.
    """
    if result is None:
        return None
    fields = as_object(result)
    if fields.get("blockNumber") is None:
        return None  # Some endpoints have receipts of what is only pending.
    if field(fields, "transactionHash", as_hash) != tx_hash.lower():
        raise WrongShape(f"a receipt of another transaction than {tx_hash}")
    contract, data_fee = fields.get("contractAddress"), fields.get("l1Fee")
    number = field(fields, "blockNumber", as_quantity)
    return Receipt(
        hash=tx_hash,
        succeeded=field(fields, "status", as_quantity) == 1,
        block_number=BlockNumber(number),
        block_hash=field(fields, "blockHash", as_hash),
        gas_used=field(fields, "gasUsed", as_quantity),
        gas_price=Wei(field(fields, "effectiveGasPrice", as_quantity)),
        contract=None if contract is None else as_address(contract),
        raw_logs=field(fields, "logs", as_logs(number, number)),
        data_fee=Wei(0 if data_fee is None else as_quantity(data_fee)),
    )
