"""Marketplace and registry logs as typed events, in chain order, with the block of each one.

`MarketplaceEvent` is what moves a session; `HostEvent` is what else a host has to know: who opened
a session, pauses of the marketplace, and its own registration, stake and prices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nodeapp.core.ids import Address, JobId, ModelId, TxHash
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, PricePerToken, Tokens
from nodeapp.evm.abi import EventAbi, checksum, load_abi
from nodeapp.evm.deployment import Deployment

_EVENTS = load_abi("JobMarketplace").events
_REGISTRY_EVENTS = load_abi("NodeRegistry").events


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

    `payment` is the host's share of proven work and the treasury's fee together. Where tokens were
    proven payment + refund == deposit; the fee of a renter who cancelled before is in neither.
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


@dataclass(frozen=True, slots=True)
class SessionCreatedByDepositor:
    """A session was paid from a balance in the marketplace; comes beside SessionCreated."""

    at: LogPosition
    job_id: JobId
    depositor: Address
    host: Address
    deposit: BaseUnits


@dataclass(frozen=True, slots=True)
class SessionCreatedByDelegate:
    """A delegate opened a session that `payer` owns; comes beside SessionCreated.

    The delegate can never complete it, so the host must settle when the renter is gone.
    """

    at: LogPosition
    job_id: JobId
    payer: Address
    delegate: Address
    host: Address
    model_id: ModelId
    deposit: BaseUnits


@dataclass(frozen=True, slots=True)
class MarketplacePaused:
    """No session is opened and no claim accepted; sessions may still be ended (Paused)."""

    at: LogPosition
    account: Address


@dataclass(frozen=True, slots=True)
class MarketplaceUnpaused:
    """Sessions and claims are accepted again (Unpaused)."""

    at: LogPosition
    account: Address


@dataclass(frozen=True, slots=True)
class NodeRegistered:
    """A host staked and is listed; `stake` in FAB base units."""

    at: LogPosition
    host: Address
    stake: BaseUnits


@dataclass(frozen=True, slots=True)
class NodeUnregistered:
    """A host left by itself and took its stake back; its claims are refused from now on."""

    at: LogPosition
    host: Address
    returned: BaseUnits


@dataclass(frozen=True, slots=True)
class NodeSlashed:
    """Part of a host's stake was taken (SlashExecuted); amounts in FAB base units."""

    at: LogPosition
    host: Address
    amount: BaseUnits
    remaining: BaseUnits
    evidence_cid: str
    reason: str
    executor: Address
    slashed_at: BlockTime


@dataclass(frozen=True, slots=True)
class NodeAutoUnregistered:
    """Too little stake was left after a slash, so the host is out (HostAutoUnregistered)."""

    at: LogPosition
    host: Address
    slashed: BaseUnits
    returned: BaseUnits
    reason: str


@dataclass(frozen=True, slots=True)
class ModelPriceUpdated:
    """A host's price for a model and an asset (ModelTokenPricingUpdated); 0 when cleared."""

    at: LogPosition
    host: Address
    model_id: ModelId
    asset: Address
    price: PricePerToken


MarketplaceEvent = SessionCreated | ProofSubmitted | SessionCompleted | SessionTimedOut
OpeningEvent = SessionCreatedByDepositor | SessionCreatedByDelegate
PauseEvent = MarketplacePaused | MarketplaceUnpaused
RegistryEvent = (
    NodeRegistered | NodeUnregistered | NodeSlashed | NodeAutoUnregistered | ModelPriceUpdated
)
HostEvent = OpeningEvent | PauseEvent | RegistryEvent
_Values = Mapping[str, Any]
_Event = TypeVar("_Event", bound=MarketplaceEvent | HostEvent)


def _model(v: _Values) -> ModelId:
    return ModelId("0x" + v["modelId"].hex())


def _created(at: LogPosition, v: _Values) -> SessionCreated:
    return SessionCreated(
        at, v["jobId"], checksum(v["depositor"]), checksum(v["host"]), _model(v), v["deposit"]
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


def _by_depositor(at: LogPosition, v: _Values) -> SessionCreatedByDepositor:
    return SessionCreatedByDepositor(
        at, v["sessionId"], checksum(v["depositor"]), checksum(v["host"]), v["deposit"]
    )


def _by_delegate(at: LogPosition, v: _Values) -> SessionCreatedByDelegate:
    return SessionCreatedByDelegate(
        at,
        v["sessionId"],
        checksum(v["payer"]),
        checksum(v["delegate"]),
        checksum(v["host"]),
        _model(v),
        v["amount"],
    )


def _paused(at: LogPosition, v: _Values) -> MarketplacePaused:
    return MarketplacePaused(at, checksum(v["account"]))


def _unpaused(at: LogPosition, v: _Values) -> MarketplaceUnpaused:
    return MarketplaceUnpaused(at, checksum(v["account"]))


def _registered(at: LogPosition, v: _Values) -> NodeRegistered:
    return NodeRegistered(at, checksum(v["operator"]), v["stakedAmount"])


def _unregistered(at: LogPosition, v: _Values) -> NodeUnregistered:
    return NodeUnregistered(at, checksum(v["operator"]), v["returnedAmount"])


def _slashed(at: LogPosition, v: _Values) -> NodeSlashed:
    return NodeSlashed(
        at,
        checksum(v["host"]),
        v["amount"],
        v["remainingStake"],
        v["evidenceCID"],
        v["reason"],
        checksum(v["executor"]),
        v["timestamp"],
    )


def _auto_unregistered(at: LogPosition, v: _Values) -> NodeAutoUnregistered:
    return NodeAutoUnregistered(
        at, checksum(v["host"]), v["slashedAmount"], v["returnedAmount"], v["reason"]
    )


def _price(at: LogPosition, v: _Values) -> ModelPriceUpdated:
    return ModelPriceUpdated(
        at, checksum(v["operator"]), _model(v), checksum(v["token"]), v["price"]
    )


_BUILDERS: Mapping[str, Callable[[LogPosition, _Values], MarketplaceEvent]] = {
    "SessionJobCreatedForModel": _created,
    "ProofSubmitted": _proof,
    "SessionCompletedBy": _completed,
    "SessionTimedOut": _timed_out,
}
_MARKET_BUILDERS: Mapping[str, Callable[[LogPosition, _Values], OpeningEvent | PauseEvent]] = {
    "SessionCreatedByDepositor": _by_depositor,
    "SessionCreatedByDelegate": _by_delegate,
    "Paused": _paused,
    "Unpaused": _unpaused,
}
_REGISTRY_BUILDERS: Mapping[str, Callable[[LogPosition, _Values], RegistryEvent]] = {
    "NodeRegistered": _registered,
    "NodeUnregistered": _unregistered,
    "SlashExecuted": _slashed,
    "HostAutoUnregistered": _auto_unregistered,
    "ModelTokenPricingUpdated": _price,
}
TOPICS: Mapping[str, str] = {
    event.name: topic
    for abi, builders in (
        (_EVENTS, _BUILDERS),
        (_EVENTS, _MARKET_BUILDERS),
        (_REGISTRY_EVENTS, _REGISTRY_BUILDERS),
    )
    for topic, event in abi.items()
    if event.name in builders
}
"""First topic of every event that is decoded here, by the contract's name for it."""
SESSION_TOPICS = tuple(TOPICS[name] for name in _BUILDERS)
"""Of MarketplaceEvent."""
REGISTRY_TOPICS = tuple(TOPICS[name] for name in _REGISTRY_BUILDERS)
"""Of RegistryEvent; each names the host in the next topic."""


def _decode(
    log: Mapping[str, Any],
    contract: Address,
    abi: Mapping[str, EventAbi],
    builders: Mapping[str, Callable[[LogPosition, _Values], _Event]],
) -> _Event | None:
    event = abi.get(log["topics"][0]) if log["topics"] else None
    foreign = checksum(log["address"]) != contract
    if foreign or log.get("removed") or event is None or event.name not in builders:
        return None
    at = LogPosition(
        block_number=BlockNumber(int(log["blockNumber"], 16)),
        block_hash=log["blockHash"],
        tx_hash=TxHash(log["transactionHash"]),
        log_index=int(log["logIndex"], 16),
    )
    values = event.decode(log["topics"], bytes.fromhex(log["data"][2:]))
    return builders[event.name](at, values)


def _in_order(
    found: Iterable[_Event | None],
) -> tuple[_Event, ...]:
    events = [event for event in found if event is not None]
    return tuple(sorted(events, key=lambda e: (e.at.block_number, e.at.log_index)))


def decode_logs(
    logs: Sequence[Mapping[str, Any]], marketplace: Address
) -> tuple[MarketplaceEvent, ...]:
    """What moves sessions, out of raw JSON-RPC logs, in chain order; foreign logs are left out."""
    return _in_order(_decode(log, marketplace, _EVENTS, _BUILDERS) for log in logs)


def decode_host_logs(
    logs: Sequence[Mapping[str, Any]], deployment: Deployment
) -> tuple[HostEvent, ...]:
    """What else a host has to know, in chain order; foreign logs are left out."""
    market = (_decode(log, deployment.marketplace, _EVENTS, _MARKET_BUILDERS) for log in logs)
    registry = (
        _decode(log, deployment.node_registry, _REGISTRY_EVENTS, _REGISTRY_BUILDERS) for log in logs
    )
    return _in_order(itertools.chain(market, registry))
