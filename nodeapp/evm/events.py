"""Marketplace logs as typed events, in chain order, with the block each one belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nodeapp.core.ids import Address, JobId, ModelId, TxHash
from nodeapp.core.units import BaseUnits, BlockNumber, Tokens
from nodeapp.evm.abi import checksum, load_abi
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.provider import Provider, quantity

MAX_BLOCK_SPAN = 2000
"""Blocks per `eth_getLogs`; public endpoints refuse more."""
_EVENTS = load_abi("JobMarketplace").events


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where a log stands; a reorg is seen as another block hash for the same number."""

    block_number: BlockNumber
    block_hash: str
    tx_hash: TxHash
    log_index: int


@dataclass(frozen=True, slots=True)
class SessionCreated:
    """A session was opened (SessionJobCreatedForModel)."""

    at: LogPosition
    job_id: JobId
    depositor: Address
    host: Address
    model_id: ModelId
    deposit: BaseUnits


@dataclass(frozen=True, slots=True)
class ProofSubmitted:
    """A claim was accepted; `tokens` is the delta."""

    at: LogPosition
    job_id: JobId
    host: Address
    tokens: Tokens
    proof_hash: bytes
    proof_cid: str
    delta_cid: str


@dataclass(frozen=True, slots=True)
class SessionCompleted:
    """A session was settled, by completion or timeout (SessionCompletedBy).

    `payment` is the host's share and the treasury's fee together; payment + refund == deposit.
    """

    at: LogPosition
    job_id: JobId
    completed_by: Address
    tokens_used: Tokens
    payment: BaseUnits
    refund: BaseUnits


@dataclass(frozen=True, slots=True)
class SessionTimedOut:
    """A session was settled by timeout; `host_share` is net of the fee."""

    at: LogPosition
    job_id: JobId
    host_share: BaseUnits
    refund: BaseUnits


MarketplaceEvent = SessionCreated | ProofSubmitted | SessionCompleted | SessionTimedOut
_Values = Mapping[str, Any]


def _created(at: LogPosition, v: _Values) -> SessionCreated:
    model_id = ModelId("0x" + v["modelId"].hex())
    return SessionCreated(
        at, v["jobId"], checksum(v["depositor"]), checksum(v["host"]), model_id, v["deposit"]
    )


def _proof(at: LogPosition, v: _Values) -> ProofSubmitted:
    return ProofSubmitted(
        at,
        v["jobId"],
        checksum(v["host"]),
        v["tokensClaimed"],
        v["proofHash"],
        v["proofCID"],
        v["deltaCID"],
    )


def _completed(at: LogPosition, v: _Values) -> SessionCompleted:
    return SessionCompleted(
        at,
        v["jobId"],
        checksum(v["completedBy"]),
        v["tokensUsed"],
        v["paymentAmount"],
        v["refundAmount"],
    )


def _timed_out(at: LogPosition, v: _Values) -> SessionTimedOut:
    return SessionTimedOut(at, v["jobId"], v["hostEarnings"], v["userRefund"])


_BUILDERS: Mapping[str, Callable[[LogPosition, _Values], MarketplaceEvent]] = {
    "SessionJobCreatedForModel": _created,
    "ProofSubmitted": _proof,
    "SessionCompletedBy": _completed,
    "SessionTimedOut": _timed_out,
}
_TOPICS = {event.name: topic for topic, event in _EVENTS.items() if event.name in _BUILDERS}


def decode_logs(
    logs: Sequence[Mapping[str, Any]], marketplace: Address
) -> tuple[MarketplaceEvent, ...]:
    """Typed events out of raw JSON-RPC logs, in chain order; foreign logs are left out."""
    events: list[MarketplaceEvent] = []
    for log in logs:
        event = _EVENTS.get(log["topics"][0]) if log["topics"] else None
        foreign = checksum(log["address"]) != marketplace
        if foreign or log.get("removed") or event is None or event.name not in _BUILDERS:
            continue
        at = LogPosition(
            block_number=BlockNumber(int(log["blockNumber"], 16)),
            block_hash=log["blockHash"],
            tx_hash=TxHash(log["transactionHash"]),
            log_index=int(log["logIndex"], 16),
        )
        values = event.decode(log["topics"], bytes.fromhex(log["data"][2:]))
        events.append(_BUILDERS[event.name](at, values))
    return tuple(sorted(events, key=lambda e: (e.at.block_number, e.at.log_index)))


def _topic(address: Address) -> str:
    return "0x" + address.removeprefix("0x").lower().rjust(64, "0")


def _filters(host: Address | None) -> tuple[list[object], ...]:
    ends = [_TOPICS["SessionCompletedBy"], _TOPICS["SessionTimedOut"]]
    if host is None:
        return ([list(_TOPICS.values())],)
    return (
        [_TOPICS["SessionJobCreatedForModel"], None, None, _topic(host)],
        [_TOPICS["ProofSubmitted"], None, _topic(host)],
        # The end of a session does not name its host: the caller knows its own sessions.
        [ends],
    )


class MarketplaceEvents:
    """Logs of one marketplace."""

    def __init__(self, provider: Provider, deployment: Deployment) -> None:
        self._provider = provider
        self._marketplace = deployment.marketplace

    async def get_events(
        self, from_block: BlockNumber, to_block: BlockNumber, host: Address | None = None
    ) -> tuple[MarketplaceEvent, ...]:
        """Events of the blocks `from_block` to `to_block`, both included, in chain order.

        Args:
            from_block: first block.
            to_block: last block; an earlier one than `from_block` gives nothing.
            host: only sessions opened for, and claims by, this host. The end of a session does
                not name a host, so ends of foreign sessions come along: drop unknown job ids.

        Raises:
            Unavailable: no endpoint answered.
        """
        events: list[MarketplaceEvent] = []
        for first in range(from_block, to_block + 1, MAX_BLOCK_SPAN):
            last = min(first + MAX_BLOCK_SPAN - 1, to_block)
            for topics in _filters(host):
                logs = await self._provider.request(
                    "eth_getLogs",
                    [
                        {
                            "address": self._marketplace,
                            "fromBlock": quantity(first),
                            "toBlock": quantity(last),
                            "topics": topics,
                        }
                    ],
                )
                events.extend(decode_logs(logs, self._marketplace))
        return tuple(sorted(events, key=lambda e: (e.at.block_number, e.at.log_index)))
