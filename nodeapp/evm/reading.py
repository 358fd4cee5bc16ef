"""Blocks and logs as one endpoint tells them, each answer held against what was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from nodeapp.core.errors import Unavailable
from nodeapp.core.units import BlockNumber
from nodeapp.evm.endpoint import NO_BLOCK, Endpoint, LogsTooLarge
from nodeapp.evm.errors import WrongShape
from nodeapp.evm.rpc import (
    Block,
    BlockTag,
    Request,
    RpcAnswer,
    as_block,
    as_logs,
    block_parameter,
    quantity,
)

_NEWEST = frozenset({"latest", "pending"})


async def read_block(endpoint: Endpoint, tag: BlockTag = "latest") -> Block | None:
    """A header as one endpoint tells it; None when it does not have the block.

    Raises:
        WrongChain: it serves another chain.
        Unavailable: no answer that can be used.
    """
    request = _block_request(tag)
    found = await endpoint.read(request, as_block)
    if isinstance(found, RpcAnswer):
        raise Unavailable(found.failure.message if found.failure else "no answer")
    if tag in _NEWEST:
        endpoint.saw(found)
    elif found is not None and isinstance(tag, int) and found.number != tag:
        endpoint.fail(f"asked for block {tag}, told block {found.number}")
        raise WrongShape(endpoint.note)
    return found


async def read_blocks(endpoint: Endpoint, numbers: Sequence[BlockNumber]) -> list[Block] | None:
    """Headers in one batch; None when the endpoint does not have them all.

    Raises:
        WrongChain: it serves another chain.
        Unavailable: no answer that can be used.
    """
    requests = [_block_request(number) for number in numbers]
    blocks: list[Block] = []
    for number, request, answer in zip(
        numbers, requests, await endpoint.ask(requests), strict=True
    ):
        found = endpoint.judge(request, answer, as_block)
        if not isinstance(found, Block):
            return None
        if found.number != number:
            endpoint.fail(f"asked for block {number}, told block {found.number}")
            raise WrongShape(endpoint.note)
        blocks.append(found)
    return blocks


async def read_logs(
    endpoint: Endpoint, query: Mapping[str, object], first: int, last: int
) -> AsyncIterator[Mapping[str, Any]]:
    """Logs in chain order, asked for in ranges of the size that the endpoint takes.

    Raises:
        LogsTooLarge: it refuses the logs of a single block.
        WrongChain: it serves another chain.
        Unavailable: no answer that can be used.
    """
    while first <= last:
        until = min(last, first + endpoint.log_span.blocks - 1)
        try:
            part = await _read_log_range(endpoint, query, first, until)
        except LogsTooLarge:
            if until == first:
                raise
            endpoint.log_span = endpoint.log_span.refused(until - first + 1)
            continue
        for log in part:
            yield log
        endpoint.log_span = endpoint.log_span.served(until - first + 1)
        first = until + 1


async def _read_log_range(
    endpoint: Endpoint, query: Mapping[str, object], first: int, last: int
) -> tuple[Mapping[str, Any], ...]:
    span = {"fromBlock": quantity(first), "toBlock": quantity(last)}
    request = Request("eth_getLogs", ({**query, **span},))
    # Behind one address may stand several nodes: the one that answers must have the last block.
    check = _block_request(BlockNumber(last))
    answers = await endpoint.ask((request, check))
    logs = endpoint.judge(request, answers[0], as_logs(first, last))
    block = endpoint.judge(check, answers[1], as_block)
    if isinstance(logs, RpcAnswer):
        raise Unavailable(logs.failure.message if logs.failure else "no answer")
    if not isinstance(block, Block) or block.number != last:
        endpoint.head = NO_BLOCK
        raise Unavailable(f"does not have block {last}")
    ours = [log for log in logs if int(log["blockNumber"], 16) == last]
    if any(log["blockHash"].lower() != block.hash for log in ours):
        raise Unavailable(f"block {last} changed while it was read")
    return logs


def _block_request(tag: BlockTag) -> Request:
    return Request("eth_getBlockByNumber", (block_parameter(tag), False))
