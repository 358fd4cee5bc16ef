"""The events of a range of blocks, asked for so that little of what others do is transferred."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nodeapp.core.ids import Address, JobId
from nodeapp.core.units import BlockNumber
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.events import (
    REGISTRY_TOPICS,
    SESSION_TOPICS,
    TOPICS,
    HostEvent,
    MarketplaceEvent,
    SessionCreated,
    SessionCreatedByDelegate,
    decode_host_logs,
    decode_logs,
)
from nodeapp.evm.provider import Provider

MAX_TOPICS = 200
"""Values of one topic in a filter."""


def _topic(address: Address) -> str:
    return "0x" + address.removeprefix("0x").lower().rjust(64, "0")


def _filters(host: Address | None) -> tuple[list[object], ...]:
    ends = [TOPICS["SessionCompletedBy"], TOPICS["SessionTimedOut"]]
    if host is None:
        return ([list(SESSION_TOPICS)],)
    return (
        [TOPICS["SessionJobCreatedForModel"], None, None, _topic(host)],
        [TOPICS["ProofSubmitted"], None, _topic(host)],
        # The end of a session does not name its host: the caller knows its own sessions.
        [ends],
    )


def _host_filters(host: Address) -> tuple[list[object], ...]:
    # Neither a pause nor a session opened by a delegate names the host in a topic.
    unnamed = [TOPICS[name] for name in ("SessionCreatedByDelegate", "Paused", "Unpaused")]
    return (
        [list(REGISTRY_TOPICS), _topic(host)],
        [TOPICS["SessionCreatedByDepositor"], None, None, _topic(host)],
        [unnamed],
    )


class MarketplaceEvents:
    """Logs of one marketplace and its node registry."""

    def __init__(self, provider: Provider, deployment: Deployment) -> None:
        self._provider = provider
        self._deployment = deployment

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
        marketplace = self._deployment.marketplace
        logs = await self._logs(marketplace, from_block, to_block, _filters(host))
        return decode_logs(logs, marketplace)

    async def get_session_events(
        self,
        from_block: BlockNumber,
        to_block: BlockNumber,
        host: Address,
        jobs: Collection[JobId],
    ) -> tuple[MarketplaceEvent, ...]:
        """What moved this host's sessions in these blocks, both included, in chain order.

        The end of a session names its job id and no host, so ends are asked for by job id: however
        much others do on the marketplace, none of it is transferred.

        Args:
            from_block: first block.
            to_block: last block.
            host: whose sessions.
            jobs: sessions opened before that have not ended; those opened in the range are added.

        Raises:
            Unavailable: no endpoint answered.
        """
        marketplace = self._deployment.marketplace
        opened, claimed, _ends = _filters(host)
        logs = await self._logs(marketplace, from_block, to_block, (opened, claimed))
        found = decode_logs(logs, marketplace)
        created = {event.job_id for event in found if isinstance(event, SessionCreated)}
        ids = sorted(created.union(jobs))
        ends = [TOPICS["SessionCompletedBy"], TOPICS["SessionTimedOut"]]
        filters: list[list[object]] = [
            [ends, [f"0x{job_id:064x}" for job_id in ids[first : first + MAX_TOPICS]]]
            for first in range(0, len(ids), MAX_TOPICS)
        ]
        ended = decode_logs(
            await self._logs(marketplace, from_block, to_block, tuple(filters)), marketplace
        )
        return tuple(sorted((*found, *ended), key=lambda e: (e.at.block_number, e.at.log_index)))

    async def get_host_events(
        self, from_block: BlockNumber, to_block: BlockNumber, host: Address
    ) -> tuple[HostEvent, ...]:
        """What else concerns a host in these blocks, both included, in chain order.

        Pauses concern every host. Sessions that a delegate opened for other hosts are left out.

        Raises:
            Unavailable: no endpoint answered.
        """
        contracts = [self._deployment.marketplace, self._deployment.node_registry]
        logs = await self._logs(contracts, from_block, to_block, _host_filters(host))
        return tuple(
            event
            for event in decode_host_logs(logs, self._deployment)
            if not isinstance(event, SessionCreatedByDelegate) or event.host == host
        )

    async def _logs(
        self,
        contracts: Address | list[Address],
        from_block: BlockNumber,
        to_block: BlockNumber,
        filters: Sequence[list[object]],
    ) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for topics in filters:
            query = {"address": contracts, "topics": topics}
            found.extend(await self._provider.logs(query, from_block, to_block))
        return found
