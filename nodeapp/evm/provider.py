"""JSON-RPC to an ordered list of endpoints with failover.

Every endpoint is asked for its chain id before its first answer counts. An endpoint that cannot be
reached rests for a while; the list's order is the preference. Errors name host and port only: an
RPC address may carry a secret in its path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohttp
from web3 import AsyncHTTPProvider
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from nodeapp.core.errors import InvalidRequest, Rejected, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.abi import revert_reason
from nodeapp.evm.errors import Reverted

REST_SECONDS = 15.0
LIMIT_EXCEEDED = -32005
BlockTag = BlockNumber | str
"""A number, or "latest", "pending", "safe", "finalized", "earliest"."""


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
class Block:
    """A block header; `base_fee` is wei per gas, 0 before EIP-1559."""

    number: BlockNumber
    hash: str
    parent_hash: str
    timestamp: BlockTime
    base_fee: Wei


@dataclass(slots=True)
class _Endpoint:
    name: str
    http: AsyncHTTPProvider
    verified: bool = False
    rests_until: float = 0.0


def quantity(value: int) -> str:
    """An integer as JSON-RPC writes it."""
    return hex(value)


def block_parameter(tag: BlockTag) -> str:
    """A block number or tag as a JSON-RPC parameter."""
    return tag if isinstance(tag, str) else hex(tag)


def _name(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidRequest(f"rpc address with scheme {parts.scheme!r} is not http or https")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _failure(error: object) -> RpcFailure:
    fields: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": str(error)}
    code = fields.get("code", 0)
    message = str(fields.get("message", "no message"))[:500]
    return RpcFailure(
        code=code if isinstance(code, int) else 0,
        message=message,
        reason=revert_reason(message, fields.get("data")),
    )


class Provider:
    """One chain behind one or more RPC addresses."""

    def __init__(
        self, urls: Sequence[str], *, chain_id: int, call_timeout_seconds: float = 10.0
    ) -> None:
        if not urls:
            raise InvalidRequest("no rpc address is configured")
        self.chain_id = chain_id
        self._timeout_seconds = call_timeout_seconds
        self._endpoints = tuple(
            _Endpoint(
                _name(url),
                AsyncHTTPProvider(
                    url,
                    request_kwargs={"timeout": aiohttp.ClientTimeout(total=call_timeout_seconds)},
                    exception_retry_configuration=None,
                ),
            )
            for url in urls
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        for endpoint in self._endpoints:
            await endpoint.http.disconnect()

    async def ask(self, method: str, params: Sequence[object]) -> RpcAnswer:
        """One JSON-RPC request, to the first endpoint that answers.

        Raises:
            Unavailable: no endpoint answered.
            Rejected: an endpoint serves another chain.
        """
        now = asyncio.get_running_loop().time()
        troubles: list[str] = []
        for endpoint in sorted(self._endpoints, key=lambda e: e.rests_until > now):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await self._verify(endpoint)
                    answer = await self._post(endpoint, method, params)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, Web3Exception) as error:
                endpoint.rests_until = asyncio.get_running_loop().time() + REST_SECONDS
                troubles.append(f"{endpoint.name} ({_describe(error)})")
                continue
            if answer.failure is not None and answer.failure.code == LIMIT_EXCEEDED:
                troubles.append(f"{endpoint.name} ({answer.failure.message})")
                continue
            endpoint.rests_until = 0.0
            return answer
        raise Unavailable(f"no rpc endpoint answered {method}: {'; '.join(troubles)}")

    async def request(self, method: str, params: Sequence[object], *, subject: str = "") -> Any:  # noqa: ANN401 (JSON; each caller names its type)
        """The JSON result of one request.

        Args:
            method: JSON-RPC method.
            params: its parameters, JSON values.
            subject: what to name in a revert; the method itself if empty.

        Raises:
            Reverted: a contract refused.
            Rejected: the endpoint refused, or serves another chain.
            Unavailable: no endpoint answered.
        """
        answer = await self.ask(method, params)
        failure = answer.failure
        if failure is None:
            return answer.result
        if failure.reason is not None:
            raise Reverted(subject or method, failure.reason)
        raise Rejected(f"{subject or method} refused: {failure.message}")

    async def block(self, tag: BlockTag = "latest") -> Block:
        """A header; Unavailable when the endpoint does not have the block (yet)."""
        found = await self.request("eth_getBlockByNumber", [block_parameter(tag), False])
        if found is None:
            raise Unavailable(f"block {tag} is not known to the rpc endpoint")
        return Block(
            number=BlockNumber(int(found["number"], 16)),
            hash=str(found["hash"]),
            parent_hash=str(found["parentHash"]),
            timestamp=BlockTime(int(found["timestamp"], 16)),
            base_fee=Wei(int(found.get("baseFeePerGas") or "0x0", 16)),
        )

    async def block_number(self) -> BlockNumber:
        """Number of the newest block."""
        return BlockNumber(int(await self.request("eth_blockNumber", []), 16))

    async def native_balance(self, address: Address, block: BlockTag = "latest") -> Wei:
        """Native coin of an account, wei."""
        return Wei(int(await self.request("eth_getBalance", [address, block_parameter(block)]), 16))

    async def has_code(self, address: Address) -> bool:
        """Whether a contract stands at the address."""
        return str(await self.request("eth_getCode", [address, "latest"])) != "0x"

    async def _verify(self, endpoint: _Endpoint) -> None:
        if endpoint.verified:
            return
        answer = await self._post(endpoint, "eth_chainId", [])
        if answer.failure is not None:
            raise aiohttp.ClientPayloadError(answer.failure.message)
        served = int(answer.result, 16)
        if served != self.chain_id:
            raise Rejected(
                f"rpc endpoint {endpoint.name} serves chain id {served}, expected {self.chain_id}"
            )
        endpoint.verified = True

    @staticmethod
    async def _post(endpoint: _Endpoint, method: str, params: Sequence[object]) -> RpcAnswer:
        answer = await endpoint.http.make_request(RPCEndpoint(method), list(params))
        fields = cast("Mapping[str, Any]", answer)
        if "error" in fields:
            return RpcAnswer(None, _failure(fields["error"]))
        if "result" not in fields:
            raise ValueError("answer without result")
        return RpcAnswer(fields["result"], None)


def _describe(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "timed out"
        case aiohttp.ClientResponseError():
            return f"http status {error.status}"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {error.os_error.strerror}"
        case _:
            return type(error).__name__
