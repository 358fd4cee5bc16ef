"""Who signs: a key in this process, or a remote signer that speaks Web3Signer's eth1 interface.

A remote answer is never taken on trust: what comes back must be what was asked for, signed by the
account it was asked of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec
from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_hash.auto import keccak
from eth_keys.datatypes import PublicKey, Signature
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError
from hexbytes import HexBytes
from rlp.exceptions import RLPException

from nodeapp.core.errors import InvalidRequest, Rejected, Unauthorised, Unavailable
from nodeapp.core.ids import Address, TxHash

REMOTE_SECONDS = 15.0
MAX_ANSWER_BYTES = 1 << 20
_QUANTITIES = ("nonce", "value", "gas", "maxFeePerGas", "maxPriorityFeePerGas")
_NO_TRANSACTION = (ValueError, TypeError, KeyError, RLPException, BadSignature, ValidationError)
"""What reading bytes that are no EIP-1559 transaction ends with."""


class Signer(Protocol):
    """What the money process needs of a key; it never sees the key itself."""

    @property
    def address(self) -> Address:
        """The account."""

    @property
    def public_key(self) -> bytes:
        """Compressed point, 33 bytes."""

    async def sign_transaction(self, fields: Mapping[str, object]) -> tuple[bytes, TxHash]:
        """Raw signed EIP-1559 transaction and its hash."""

    async def sign_hashed(self, message: bytes) -> bytes:
        """Signature over the message's keccak256, r || s || v with v 27 or 28, 65 bytes."""


class RemoteSigner:
    """One account of a remote signer; open with `async with RemoteSigner(...)`."""

    def __init__(self, url: str, address: Address) -> None:
        """Args: url: http(s)://host:port, or unix:/path/to/socket; address: whose key."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https", "unix"}:
            raise InvalidRequest(f"signer address {url!r} is not http:, https: or unix:")
        self._name = f"signer {parts.scheme}://{parts.netloc or parts.path}"
        self._socket = parts.path if parts.scheme == "unix" else None
        self._base = "http://signer" if self._socket else url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None
        self._public_key = b""
        self.address = address

    @property
    def public_key(self) -> bytes:
        """Compressed point, 33 bytes; known once entered."""
        return self._public_key

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(self._socket) if self._socket else None
        limit = aiohttp.ClientTimeout(total=REMOTE_SECONDS)
        self._http = aiohttp.ClientSession(connector=connector, timeout=limit)
        try:
            self._public_key = await self._find_key()
        except BaseException:
            await self._http.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def sign_transaction(self, fields: Mapping[str, object]) -> tuple[bytes, TxHash]:
        """Raw signed transaction and its hash.

        Raises:
            Rejected: the signer refuses; its words follow.
            Unauthorised: it signed something else, or as somebody else.
            Unavailable: it does not answer.
        """
        asked: dict[str, object] = {"from": self.address, "data": _hex(fields.get("data", b""))}
        asked |= {name: hex(_integer(fields[name])) for name in _QUANTITIES}
        if "to" in fields:
            asked["to"] = fields["to"]
        ask = {"jsonrpc": "2.0", "id": 1, "method": "eth_signTransaction", "params": [asked]}
        answer = await self._post("/", ask)
        if not isinstance(answer, Mapping) or not isinstance(answer.get("result"), str):
            error = answer.get("error") if isinstance(answer, Mapping) else None
            told = error.get("message") if isinstance(error, Mapping) else None
            raise Rejected(f"{self._name} refused the transaction: {told or 'no reason given'}")
        raw = _bytes(answer["result"], self._name)
        self._check(raw, fields)
        return raw, TxHash("0x" + keccak(raw).hex())

    async def sign_hashed(self, message: bytes) -> bytes:
        """Signature over the message's keccak256.

        Raises:
            Unauthorised: it signed as somebody else.
            Unavailable: it does not answer.
        """
        point = PublicKey.from_compressed_bytes(self._public_key)
        answer = await self._post(f"/api/v1/eth1/sign/{point.to_hex()}", {"data": _hex(message)})
        signature = _bytes(answer, self._name)
        if len(signature) != 65:
            raise Unauthorised(f"{self._name} gave a signature of {len(signature)} bytes")
        v = signature[64] - 27 if signature[64] >= 27 else signature[64]
        try:
            signer = Signature(signature[:64] + bytes((v,))).recover_public_key_from_msg(message)
        except (BadSignature, ValidationError, ValueError) as error:
            raise Unauthorised(f"{self._name} gave no valid signature") from error
        if signer != point:
            raise Unauthorised(f"{self._name} signed with another key than {self.address}'s")
        return signature[:64] + bytes((v + 27,))

    def _check(self, raw: bytes, fields: Mapping[str, object]) -> None:
        try:
            signed = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            sender = Account.recover_transaction(HexBytes(raw))
            offered = {name: _integer(signed[name]) for name in (*_QUANTITIES, "chainId")}
        except _NO_TRANSACTION as error:
            raise Unauthorised(f"{self._name} gave no EIP-1559 transaction") from error
        to = str(fields.get("to", ""))
        is_same = (
            all(number == _integer(fields[name]) for name, number in offered.items())
            and bytes(signed["data"]) == _octets(fields.get("data", b""))
            and bytes(signed["to"]).hex() == to.removeprefix("0x").lower()
            and sender == self.address
        )
        if not is_same:
            raise Unauthorised(f"{self._name} signed another transaction than it was asked for")

    async def _find_key(self) -> bytes:
        listed = await self._get("/api/v1/eth1/publicKeys")
        for text in listed if isinstance(listed, list) else ():
            try:
                key = PublicKey(_bytes(text, self._name)[-64:])
            except ValidationError:
                continue
            if Address(key.to_checksum_address()) == self.address:
                return key.to_compressed_bytes()
        raise Rejected(f"{self._name} has no key of {self.address}")

    async def _get(self, path: str) -> Any:  # noqa: ANN401 (JSON of another program)
        return await self._ask("GET", path, None)

    async def _post(self, path: str, body: object) -> Any:  # noqa: ANN401 (as above)
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: object) -> Any:  # noqa: ANN401 (as above)
        if self._http is None:
            raise Unavailable(f"{self._name} is not connected")
        try:
            async with (
                asyncio.timeout(REMOTE_SECONDS),
                self._http.request(method, self._base + path, json=body) as response,
            ):
                content = await response.content.read(MAX_ANSWER_BYTES)
                if response.status >= 400:
                    told = content.decode(errors="replace")[:200]
                    raise Rejected(f"{self._name} answers {response.status}: {told}")
                text = content.decode()
                is_json = response.content_type == "application/json"
                return msgspec.json.decode(text) if is_json else text
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(f"{self._name} does not answer: {type(error).__name__}") from error


def _hex(value: object) -> str:
    return "0x" + _octets(value).hex()


def _octets(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise InvalidRequest(f"call data is {type(value).__name__}, bytes expected")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise InvalidRequest(f"transaction field is {type(value).__name__}, a number expected")
    return value


def _bytes(value: object, who: str) -> bytes:
    try:
        return bytes.fromhex(str(value).strip().strip('"').removeprefix("0x"))
    except ValueError as error:
        raise Unauthorised(f"{who} gave no hexadecimal answer") from error
