"""JSON-RPC to an ordered list of endpoints with failover.

The list's order is the preference; latency, errors and rests after failures decide who is asked
now. An endpoint that does not have a block yet is not asked about it: its empty answer would look
like the truth. What belongs together is read through `pinned_to` from one endpoint.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from nodeapp.core.errors import InvalidRequest, Rejected, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.endpoint import Endpoint, LogsTooLarge, WrongChain
from nodeapp.evm.errors import Reverted
from nodeapp.evm.reading import read_block, read_blocks, read_logs
from nodeapp.evm.rpc import (
    Block,
    BlockTag,
    Decode,
    Decoded,
    Request,
    RpcAnswer,
    RpcFailure,
    as_any,
    as_quantity,
    block_parameter,
    quantity,
)

__all__ = ["Block", "BlockTag", "Provider", "RpcAnswer", "block_parameter", "quantity"]

BATCH_SIZE = 50
"""Blocks asked for in one batch."""
Found = TypeVar("Found")


class Provider:
    """One chain behind one or more RPC addresses."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        chain_id: int,
        call_timeout_seconds: float = 10.0,
        requests_per_second: float = 0.0,
    ) -> None:
        """Nothing is connected yet.

        Args:
            urls: http and https addresses, the preferred one first.
            chain_id: what every endpoint must serve.
            call_timeout_seconds: for one request to one endpoint.
            requests_per_second: most for one endpoint, 0 = no limit; never for loopback.

        Raises:
            InvalidRequest: no address, or not one of http or https.
        """
        if not urls:
            raise InvalidRequest("no rpc address is configured")
        self.chain_id = chain_id
        self.endpoints = tuple(
            Endpoint(
                url,
                chain_id=chain_id,
                call_timeout_seconds=call_timeout_seconds,
                requests_per_second=requests_per_second,
            )
            for url in urls
        )
        self._current: Endpoint | None = None

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
        for endpoint in self.endpoints:
            await endpoint.close()

    def pinned_to(self, endpoints: Iterable[Endpoint]) -> Provider:
        """The same chain read through some of the endpoints only; close it with the whole."""
        some = copy.copy(self)
        some.endpoints = tuple(endpoints)
        return some

    def available(self) -> tuple[Endpoint, ...]:
        """Endpoints to ask now, best first.

        One that rests comes only when all do, and not before the time that it asked for itself.
        """
        now = asyncio.get_running_loop().time()
        awake = [e for e in self.endpoints if not e.health.is_resting(now)]
        if awake:
            return tuple(sorted(awake, key=self._cost))
        free = [e for e in self.endpoints if not e.must_rest(now)]
        return tuple(sorted(free, key=lambda e: e.health.rests_until))

    async def ask(
        self, method: str, params: Sequence[object], *, needs_block: BlockTag | None = None
    ) -> RpcAnswer:
        """One JSON-RPC request, to the first endpoint that answers.

        Args:
            method: JSON-RPC method.
            params: its parameters, JSON values.
            needs_block: a block that the endpoint must have, None or a tag if any will do.

        Raises:
            Unavailable: no endpoint answered.
            WrongChain: every endpoint serves another chain.
        """
        return await self._ask(Request(method, tuple(params)), as_any, needs_block)

    async def call(
        self,
        method: str,
        params: Sequence[object],
        decode: Decode[Decoded],
        *,
        subject: str = "",
        needs_block: BlockTag | None = None,
    ) -> Decoded:
        """The decoded result of one request; an answer of the wrong shape is not taken.

        Args:
            method: JSON-RPC method.
            params: its parameters, JSON values.
            decode: raises WrongShape for what the method never answers.
            subject: what to name in a revert; the method itself if empty.
            needs_block: a block that the endpoint must have.

        Raises:
            Reverted: a contract refused.
            Rejected: the endpoint refused.
            WrongChain: every endpoint serves another chain.
            Unavailable: no endpoint answered.
        """
        answer = await self._ask(Request(method, tuple(params)), decode, needs_block)
        failure = answer.failure
        if failure is not None:
            raise _refused(subject or method, failure)
        result: Decoded = answer.result
        return result

    async def request(
        self,
        method: str,
        params: Sequence[object],
        *,
        subject: str = "",
        needs_block: BlockTag | None = None,
    ) -> Any:  # noqa: ANN401 (JSON; each caller names its type)
        """`call` with the JSON result as it came."""
        return await self.call(method, params, as_any, subject=subject, needs_block=needs_block)

    async def find(
        self, method: str, params: Sequence[object], decode: Decode[Found | None]
    ) -> Found | None:
        """The first result that is not null; None only when every endpoint says so.

        For what one endpoint may not have heard of yet: transactions and receipts.

        Raises:
            Rejected: an endpoint refused.
            Unavailable: no endpoint answered.
        """
        request = Request(method, tuple(params))

        async def some(endpoint: Endpoint) -> RpcAnswer | None:
            answer = await self._read(endpoint, request, decode)
            return None if answer.failure is None and answer.result is None else answer

        answer = await self._first(method, None, some)
        if answer is None:
            return None
        if answer.failure is not None:
            raise _refused(method, answer.failure)
        result: Found = answer.result
        return result

    async def tell_all(self, method: str, params: Sequence[object]) -> RpcAnswer:
        """Hand the same to every endpoint: one alone may take a transaction and never pass it on.

        Returns:
            A result if any endpoint gave one, else the preferred endpoint's refusal.

        Raises:
            WrongChain: every endpoint serves another chain.
            Unavailable: no endpoint answered.
        """
        request = Request(method, tuple(params))
        endpoints = self.available()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer_or_none(one, request)) for one in endpoints]
        answers = [answer for task in tasks if (answer := task.result()) is not None]
        taken = [answer for answer in answers if answer.failure is None]
        if not answers:
            # Nobody answered: ask once more in turn, for the reasons.
            return await self.ask(method, params)
        return (taken or answers)[0]

    async def block(self, tag: BlockTag = "latest") -> Block:
        """A header; Unavailable when no endpoint has the block (yet)."""

        async def read(endpoint: Endpoint) -> Block | None:
            return await read_block(endpoint, tag)

        found = await self._first("eth_getBlockByNumber", tag, read)
        if found is None:
            raise Unavailable(f"block {tag} is not known to the rpc endpoint")
        return found

    async def blocks(self, numbers: Iterable[BlockNumber]) -> Mapping[BlockNumber, Block]:
        """Headers of many blocks, by batches where the endpoint does them.

        Raises:
            Unavailable: no endpoint answered, or one of the blocks is not known.
        """
        wanted = sorted(set(numbers))
        found: dict[BlockNumber, Block] = {}
        for start in range(0, len(wanted), BATCH_SIZE):
            part = wanted[start : start + BATCH_SIZE]

            async def read(
                endpoint: Endpoint, part: Sequence[BlockNumber] = part
            ) -> list[Block] | None:
                return await read_blocks(endpoint, part)

            headers = await self._first("eth_getBlockByNumber", part[-1], read)
            if headers is None:
                raise Unavailable(
                    f"not every block of {part[0]} to {part[-1]} is known to the rpc endpoint"
                )
            found |= {block.number: block for block in headers}
        return found

    async def logs(
        self, query: Mapping[str, object], first: BlockNumber, last: BlockNumber
    ) -> tuple[Mapping[str, Any], ...]:
        """Raw logs of the blocks `first` to `last`, both included, in chain order, each once.

        Asked for in ranges; an endpoint that calls a range too large is asked for half of it
        from then on, and for more again while that goes well.

        Args:
            query: address and topics of `eth_getLogs`.
            first: first block.
            last: last block; an endpoint that does not have it is not asked.

        Raises:
            Unavailable: no endpoint answered.
        """

        async def read(endpoint: Endpoint) -> tuple[Mapping[str, Any], ...]:
            return tuple([log async for log in read_logs(endpoint, query, first, last)])

        return (await self._first("eth_getLogs", last, read) or ()) if first <= last else ()

    async def block_number(self) -> BlockNumber:
        """Number of the newest block."""
        return BlockNumber(await self.call("eth_blockNumber", [], as_quantity))

    async def native_balance(self, address: Address, block: BlockTag = "latest") -> Wei:
        """Native coin of an account, wei."""
        params = [address, block_parameter(block)]
        return Wei(await self.call("eth_getBalance", params, as_quantity, needs_block=block))

    async def has_code(self, address: Address) -> bool:
        """Whether a contract stands at the address."""
        return str(await self.request("eth_getCode", [address, "latest"])) != "0x"

    async def _ask(
        self, request: Request, decode: Decode[Any], needs_block: BlockTag | None
    ) -> RpcAnswer:
        async def read(endpoint: Endpoint) -> RpcAnswer:
            return await self._read(endpoint, request, decode)

        found = await self._first(request.method, needs_block, read)
        # _first gives None only when `read` did.
        return found or RpcAnswer(None, None)

    @staticmethod
    async def _read(endpoint: Endpoint, request: Request, decode: Decode[Any]) -> RpcAnswer:
        found = await endpoint.read(request, decode)
        return found if isinstance(found, RpcAnswer) else RpcAnswer(found, None)

    async def _first(
        self,
        method: str,
        needs_block: BlockTag | None,
        read: Callable[[Endpoint], Awaitable[Found | None]],
    ) -> Found | None:
        """What the first endpoint has; None when those that answered have nothing."""
        troubles: list[str] = []
        strangers: list[WrongChain] = []
        has_answered = False
        for endpoint in self.available():
            try:
                found = await _read_if_there(endpoint, needs_block, read)
            except WrongChain as error:
                strangers.append(error)
            except (Unavailable, LogsTooLarge) as error:
                troubles.append(f"{endpoint.name} ({error.message})")
            else:
                if found is not None:
                    self._current = endpoint
                    return found
                has_answered = True
        if has_answered:
            return None
        if len(strangers) == len(self.endpoints):
            raise strangers[0]
        troubles += [stranger.message for stranger in strangers]
        raise Unavailable(f"no rpc endpoint answered {method}: {self._all(troubles)}")

    def _all(self, troubles: Sequence[str]) -> str:
        return "; ".join(troubles) or "; ".join(
            f"{endpoint.name} (rests: {endpoint.note})" for endpoint in self.endpoints
        )

    def _cost(self, endpoint: Endpoint) -> float:
        place = self.endpoints.index(endpoint)
        return endpoint.health.cost(place, is_current=endpoint is self._current)


def _refused(subject: str, failure: RpcFailure) -> Rejected:
    if failure.reason is not None:
        return Reverted(subject, failure.reason)
    return Rejected(f"{subject} refused: {failure.message}")


async def _answer_or_none(endpoint: Endpoint, request: Request) -> RpcAnswer | None:
    try:
        found = await endpoint.read(request, as_any)
    except (Unavailable, Rejected):
        return None  # It rests now, and says so in its note.
    return found if isinstance(found, RpcAnswer) else RpcAnswer(found, None)


async def _read_if_there(
    endpoint: Endpoint,
    needs_block: BlockTag | None,
    read: Callable[[Endpoint], Awaitable[Found | None]],
) -> Found | None:
    if isinstance(needs_block, int) and endpoint.head < needs_block:
        head = await endpoint.refresh_head()
        if head < needs_block:
            raise Unavailable(f"is at block {head}, asked about block {needs_block}")
    return await read(endpoint)
