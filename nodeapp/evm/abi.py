"""Contract interfaces as data: encode calls, decode answers, logs and revert reasons.

The ABI files beside this module are written by `nodeapp.devnet.build` and equal the contracts'.
`Any` appears here only: what leaves is turned into dataclasses by contracts.py and events.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_utils.abi import collapse_if_tuple
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address
from nodeapp.evm.errors import WrongShape

ERROR_STRING = bytes.fromhex("08c379a0")
PANIC = bytes.fromhex("4e487b71")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one contract function; `to` is None for a contract creation, `value` is wei."""

    to: Address | None
    function: str
    data: bytes
    value: int = 0


@dataclass(frozen=True, slots=True)
class FunctionAbi:
    """Name, selector and flat type strings of one function."""

    name: str
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def encode(self, arguments: Sequence[object]) -> bytes:
        """Call data.

        Raises:
            InvalidRequest: the arguments do not fit the types.
        """
        try:
            return self.selector + encode(self.inputs, arguments)
        except (EncodingError, TypeError, ValueError) as error:
            raise InvalidRequest(f"{self.name}: {error}") from error

    def decode(self, answer: bytes) -> tuple[Any, ...]:
        """Values of an `eth_call` answer.

        Raises:
            WrongShape: the answer does not fit: a broken endpoint, or another contract.
        """
        try:
            return decode(self.outputs, answer)
        except (DecodingError, OverflowError) as error:
            raise WrongShape(
                f"{self.name} answered {len(answer)} bytes that are no {self.outputs}: "
                "is the deployment file right"
            ) from error


@dataclass(frozen=True, slots=True)
class EventAbi:
    """Name, topic and parameters of one event, indexed ones first in topic order."""

    name: str
    topic: str
    indexed: tuple[tuple[str, str], ...]
    plain: tuple[tuple[str, str], ...]

    def decode(self, topics: Sequence[str], data: bytes) -> dict[str, Any]:
        """Parameter values by name.

        Raises:
            WrongShape: the log does not fit the event.
        """
        try:
            values = {
                name: decode((kind,), bytes.fromhex(topic.removeprefix("0x")))[0]
                for (name, kind), topic in zip(self.indexed, topics[1:], strict=True)
            }
            plain = decode([kind for _, kind in self.plain], data)
        except (DecodingError, ValueError) as error:
            raise WrongShape(f"log does not fit event {self.name}: {error}") from error
        values.update(zip([name for name, _ in self.plain], plain, strict=True))
        return values


@dataclass(frozen=True, slots=True)
class ContractAbi:
    """Functions by name, events by topic."""

    functions: Mapping[str, FunctionAbi]
    events: Mapping[str, EventAbi]


def _signature(entry: Mapping[str, Any]) -> str:
    kinds = ",".join(collapse_if_tuple(parameter) for parameter in entry["inputs"])
    return f"{entry['name']}({kinds})"


def _function(entry: Mapping[str, Any]) -> FunctionAbi:
    return FunctionAbi(
        name=entry["name"],
        selector=keccak(text=_signature(entry))[:4],
        inputs=tuple(collapse_if_tuple(parameter) for parameter in entry["inputs"]),
        outputs=tuple(collapse_if_tuple(parameter) for parameter in entry["outputs"]),
    )


def _event(entry: Mapping[str, Any]) -> EventAbi:
    def parameters(*, indexed: bool) -> tuple[tuple[str, str], ...]:
        return tuple((p["name"], p["type"]) for p in entry["inputs"] if p["indexed"] is indexed)

    return EventAbi(
        name=entry["name"],
        topic="0x" + keccak(text=_signature(entry)).hex(),
        indexed=parameters(indexed=True),
        plain=parameters(indexed=False),
    )


def parse_abi(entries: Sequence[Mapping[str, Any]]) -> ContractAbi:
    """Turn a JSON ABI into encoders and decoders."""
    functions = [_function(entry) for entry in entries if entry["type"] == "function"]
    events = [_event(entry) for entry in entries if entry["type"] == "event"]
    return ContractAbi(
        functions={function.name: function for function in functions},
        events={event.topic: event for event in events},
    )


def load_abi(contract: str) -> ContractAbi:
    """Read `abi/<contract>.json` of this package."""
    text = resources.files("nodeapp.evm").joinpath("abi", f"{contract}.json").read_text("utf-8")
    return parse_abi(json.loads(text))


def creation(
    contract: str, bytecode: str, entries: Sequence[Mapping[str, Any]], arguments: Sequence[object]
) -> Call:
    """The call that creates a contract.

    Args:
        contract: its name, for messages.
        bytecode: 0x hex of the creation code.
        entries: JSON ABI; its constructor says the types of `arguments`.
        arguments: constructor arguments.
    """
    constructors = [entry for entry in entries if entry["type"] == "constructor"]
    kinds = [collapse_if_tuple(p) for entry in constructors for p in entry["inputs"]]
    code = bytes.fromhex(bytecode.removeprefix("0x"))
    return Call(None, f"creation of {contract}", code + encode(kinds, arguments))


def created_address(sender: Address, nonce: int) -> Address:
    """Where a contract created by this transaction will stand.

    Source: Yellow paper, section 7: the last 20 bytes of keccak256(rlp([sender, nonce])).
    """
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    small = len(number) == 1 and nonce < 0x80
    body = b"\x94" + bytes.fromhex(sender[2:])
    body += number if small else bytes([0x80 + len(number)]) + number
    return checksum("0x" + keccak(bytes([0xC0 + len(body)]) + body)[-20:].hex())


def checksum(address: str) -> Address:
    """EIP-55 form.

    Raises:
        InvalidRequest: not 20 bytes of hex.
    """
    try:
        return Address(to_checksum_address(address))
    except ValueError as error:
        raise InvalidRequest(f"{address!r} is not an address") from error


def revert_reason(message: str, data: object) -> str | None:
    """The reason of a revert, "" when it has none, None when the failure is no revert.

    Source: Solidity ABI, `Error(string)` and `Panic(uint256)`.
    """
    raw = data.get("data") if isinstance(data, Mapping) else data
    if isinstance(raw, str) and raw.startswith("0x") and len(raw) >= 10:
        body = bytes.fromhex(raw[2:])
        try:
            if body[:4] == ERROR_STRING:
                return str(decode(["string"], body[4:])[0])
            if body[:4] == PANIC:
                return f"panic {decode(['uint256'], body[4:])[0]}"
        except DecodingError:
            return f"undecodable revert data {raw[:74]}"
        return f"custom error {raw[:10]}"
    _, found, text = message.partition("execution reverted")
    if found:
        return text.lstrip(":, ").strip()
    return "" if "revert" in message.lower() else None
