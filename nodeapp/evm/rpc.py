"""JSON-RPC as values: requests, answers, what a refusal means, and typed decoding of results.

Pure. A result of the wrong shape raises WrongShape: that is the endpoint's failure, not ours.
Wordings are those of the public endpoints of 2026; the codes of EIP-1474 mean different things at
different providers, so the message decides first.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nodeapp.core.ids import Address
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.abi import checksum, revert_reason
from nodeapp.evm.errors import WrongShape

Decoded = TypeVar("Decoded")
Decode = Callable[[Any], Decoded]
BlockTag = BlockNumber | str
"""A number, or "latest", "pending", "safe", "finalized", "earliest"."""

_HASH = re.compile(r"0x[0-9a-fA-F]{64}")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_BYTES = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


class Meaning(enum.Enum):
    """What a stated failure says about the endpoint."""

    ANSWER = "answer"
    """A true answer: a revert, a refused transaction."""
    LIMITED = "limited"
    """Too many requests: rest, ask another."""
    TOO_LARGE = "too large"
    """A log query over the endpoint's range, count or size limit: ask for less."""
    LACKING = "lacking"
    """It does not have the block or the state: ask another, it is not ill."""
    BROKEN = "broken"
    """An inner error: ask another."""


@dataclass(frozen=True, slots=True)
class RpcFailure:
    """The `error` of a JSON-RPC answer; `reason` is the revert string, None if it is no revert."""

    code: int
    message: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class RpcAnswer:
    """Either a result or a failure that the endpoint stated."""

    result: Any
    failure: RpcFailure | None


@dataclass(frozen=True, slots=True)
class Request:
    """One method with its parameters (JSON values)."""

    method: str
    params: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A block header; `base_fee` is wei per gas, 0 before EIP-1559."""

    number: BlockNumber
    hash: str
    parent_hash: str
    timestamp: BlockTime
    base_fee: Wei


METHOD_MISSING = -32601
_LIMITED_CODES = frozenset({429, -32005, -32007, -32016, -32029, -32090, -32097})
_LIMITED_WORDS = (
    "rate limit",
    "limit exceeded",
    "too many requests",
    "request limit",
    "requests per second",
    "compute units",
    "capacity exceeded",
    "quota",
    "throttle",
)
_TOO_LARGE_WORDS = (
    "query returned more than",
    "more than 10000 results",
    "too many results",
    "too many logs",
    "logs matched by query exceeds limit",
    "block range",
    "range too large",
    "range is too large",
    "range limit",
    "ranges over",
    "exceed maximum block",
    "exceeds max block",
    "max block range",
    "blocks distance",
    "response size",
    "response too large",
    "response is too big",
    "result set too large",
    "query exceeds max",
    "query timeout exceeded",
    "eth_getlogs is limited",
    "eth_getlogs requests with up to",
    "reduce the block range",
    "too wide",
)
_LACKING_WORDS = (
    "header not found",
    "unknown block",
    "block not found",
    "block is not available",
    "missing trie node",
    "state is not available",
    "historical state",
    "state already pruned",
    "pruned",
    "cannot query unfinalized data",
    "after last accepted block",
    "invalid block range",
    "block out of range",
    "blockoutofrange",
    "beyond current head",
)
_BROKEN_CODES = frozenset({-32603, METHOD_MISSING, -32001, -32002, -32098, -32099})


def meaning_of(method: str, failure: RpcFailure) -> Meaning:
    """How a stated failure is to be taken.

    Sources: EIP-1474; geth eth/filters and internal/ethapi; the error pages of the common
    providers. "invalid block range" is geth's word for a block it does not have yet.
    """
    if failure.reason is not None:
        return Meaning.ANSWER
    text = failure.message.lower()
    if any(words in text for words in _LACKING_WORDS):
        return Meaning.LACKING
    if method == "eth_getLogs" and any(words in text for words in _TOO_LARGE_WORDS):
        return Meaning.TOO_LARGE
    if failure.code in _LIMITED_CODES or any(words in text for words in _LIMITED_WORDS):
        return Meaning.LIMITED
    # There is another way to choose a fee: the caller decides.
    if method == "eth_maxPriorityFeePerGas" and failure.code == METHOD_MISSING:
        return Meaning.ANSWER
    # Some endpoints refuse a transaction with "internal error": the reason in words is the answer.
    if failure.code in _BROKEN_CODES and method != "eth_sendRawTransaction":
        return Meaning.BROKEN
    return Meaning.ANSWER


def read_answer(fields: object) -> RpcAnswer:
    """One JSON-RPC answer object.

    Raises:
        WrongShape: neither result nor error.
    """
    if not isinstance(fields, Mapping):
        raise WrongShape("answer is no json object")
    error = fields.get("error")
    if error is not None:
        return RpcAnswer(None, _failure(error))
    if "result" not in fields:
        raise WrongShape("answer without result")
    return RpcAnswer(fields["result"], None)


def _failure(error: object) -> RpcFailure:
    fields: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": str(error)}
    code = fields.get("code", 0)
    message = str(fields.get("message", "no message"))[:500]
    return RpcFailure(
        code=code if isinstance(code, int) else 0,
        message=message,
        reason=_reason(message, fields.get("data")),
    )


def _reason(message: str, data: object) -> str | None:
    try:
        return revert_reason(message, data)
    except ValueError:
        return revert_reason(message, None)


def quantity(value: int) -> str:
    """An integer as JSON-RPC writes it."""
    return hex(value)


def block_parameter(tag: BlockTag) -> str:
    """A block number or tag as a JSON-RPC parameter."""
    return tag if isinstance(tag, str) else hex(tag)


def as_any(result: object) -> Any:  # noqa: ANN401 (JSON; the caller names its type)
    """The result as it came."""
    return result


def as_quantity(result: object) -> int:
    """A hex quantity, at most 256 bits."""
    if not isinstance(result, str) or _QUANTITY.fullmatch(result) is None:
        raise WrongShape(f"{str(result)[:40]!r} is no quantity")
    return int(result, 16)


def as_hash(result: object) -> str:
    """32 bytes of hex."""
    if not isinstance(result, str) or _HASH.fullmatch(result) is None:
        raise WrongShape(f"{str(result)[:40]!r} is no hash")
    return result.lower()


def as_bytes(result: object) -> bytes:
    """Hex bytes of any length."""
    if not isinstance(result, str) or _BYTES.fullmatch(result) is None:
        raise WrongShape(f"{str(result)[:40]!r} is no hex")
    return bytes.fromhex(result[2:])


def as_address(result: object) -> Address:
    """20 bytes of hex, in EIP-55 form."""
    if not isinstance(result, str) or _ADDRESS.fullmatch(result) is None:
        raise WrongShape(f"{str(result)[:40]!r} is no address")
    return checksum(result)


def as_list(result: object) -> Sequence[object]:
    """A JSON array."""
    if not isinstance(result, list):
        raise WrongShape(f"{str(result)[:40]!r} is no list")
    return result


def as_object(result: object) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(result, Mapping):
        raise WrongShape(f"{str(result)[:40]!r} is no object")
    return result


def field(fields: Mapping[str, Any], name: str, decode: Decode[Decoded]) -> Decoded:
    """One field of an object; a missing one is a wrong shape."""
    if name not in fields:
        raise WrongShape(f"field {name} is missing")
    return decode(fields[name])


def as_block(result: object) -> Block | None:
    """A header without transactions; None where the endpoint does not have the block."""
    if result is None:
        return None
    fields = as_object(result)
    fee = fields.get("baseFeePerGas")
    return Block(
        number=BlockNumber(field(fields, "number", as_quantity)),
        hash=field(fields, "hash", as_hash),
        parent_hash=field(fields, "parentHash", as_hash),
        timestamp=BlockTime(field(fields, "timestamp", as_quantity)),
        base_fee=Wei(0 if fee is None else as_quantity(fee)),
    )


def as_logs(first: int, last: int) -> Decode[tuple[Mapping[str, Any], ...]]:
    """Logs of a range: each is whole, inside the range, and there once, in chain order.

    A log of another range, or one place with two logs, is a wrong shape; a repeated log is left
    out, as is one that a reorganisation took back.
    """

    def decode(result: object) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(result, list):
            raise WrongShape("logs are no list")
        found: dict[tuple[int, int], Mapping[str, Any]] = {}
        for raw in result:
            log = as_object(raw)
            if log.get("removed"):
                continue
            place = _place(log)
            if not first <= place[0] <= last:
                raise WrongShape(f"log of block {place[0]} in the range {first} to {last}")
            if log_identity(found.setdefault(place, log)) != log_identity(log):
                raise WrongShape(f"two logs at block {place[0]} index {place[1]}")
        return tuple(found[place] for place in sorted(found))

    return decode


def _place(log: Mapping[str, Any]) -> tuple[int, int]:
    field(log, "blockHash", as_hash)
    field(log, "transactionHash", as_hash)
    field(log, "data", as_bytes)
    topics = log.get("topics")
    if not isinstance(topics, list) or len(topics) > 4:
        raise WrongShape("topics are no list of at most four")
    for topic in topics:
        as_hash(topic)
    # Without the checksum: there may be a hundred thousand of them.
    if _ADDRESS.fullmatch(str(log.get("address"))) is None:
        raise WrongShape("log without address")
    return field(log, "blockNumber", as_quantity), field(log, "logIndex", as_quantity)


def log_identity(log: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes a log the one it is, whatever else an endpoint says about it."""
    return (
        int(log["logIndex"], 16),
        log["blockHash"].lower(),
        log["transactionHash"].lower(),
        log["address"].lower(),
        tuple(log["topics"]),
        log["data"],
    )
