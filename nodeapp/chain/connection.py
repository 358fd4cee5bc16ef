"""How the chain process reaches its chain: endpoints, what they agree on, a bell for new heads.

`provider` answers anything at any time; `steady` is what the watcher follows. Addresses of
`chain.rpc_urls` that begin with ws are subscribed to and wake the poller, the others are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.errors import Disagreement
from nodeapp.evm.generation import Generation
from nodeapp.evm.provider import Provider
from nodeapp.evm.steady import SteadyProvider
from nodeapp.evm.subscription import SCHEMES, NewHeads
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings

WOKEN_POLLS = 10
"""With a standing subscription the poll is a safety net: so many times as rare, 30 s at most."""
LONGEST_POLL_SECONDS = 30.0
RPC_RETRY_SECONDS = 2.0
_log = get_logger(__name__)


class Connection:
    """Use as an async context manager."""

    def __init__(self, settings: ChainSettings, clock: Clock, metrics: Metrics) -> None:
        urls = settings.rpc_urls
        bells = tuple(url for url in urls if url.partition("://")[0] in SCHEMES)
        asked = tuple(url for url in urls if url not in bells)
        if bells and not asked:
            raise InvalidRequest(
                "chain.rpc_urls has ws addresses only: they wake the node, add an http or https"
                " address that it can ask"
            )
        self.provider = Provider(
            asked,
            chain_id=settings.chain_id,
            call_timeout_seconds=settings.rpc_timeout_seconds,
            requests_per_second=settings.rpc_requests_per_second,
        )
        self.steady = SteadyProvider(self.provider, unix_seconds=clock.unix_seconds)
        self._settings = settings
        self._bell = asyncio.Event()
        self._heads = NewHeads(bells, self._bell.set)
        self._has_bells = bool(bells)
        self._resources = AsyncExitStack()
        self._disagreements = metrics.counter(
            "rpc_disagreements_total", "Steps refused because endpoints tell different chains"
        )
        self._usable = metrics.gauge("rpc_endpoints_usable", "Endpoints that do not rest")
        self._latency = metrics.gauge(
            "rpc_latency_seconds", "Moving average of an endpoint", ("endpoint",)
        )
        self._subscribed = metrics.gauge("rpc_subscriptions", "WebSocket subscriptions that stand")

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self.provider)
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._resources.aclose()

    async def check(self, deployment: Deployment) -> Generation:
        """Check the contracts and tell their ABI generation.

        Raises:
            Rejected: another chain, another ABI, or contracts that do not belong together.
            Unavailable: no endpoint answers now; call again.
        """
        wanted = Generation(self._settings.abi)
        return await Contracts(self.provider, deployment).check(wanted)

    async def listen(self) -> None:
        """Keep the subscriptions up until cancelled; returns at once where there are none."""
        if self._has_bells:
            await self._heads.run()

    async def survey(self) -> None:
        """Agree on the newest confirmed block; call before each step of the watcher.

        Raises:
            Disagreement: the endpoints tell different chains; nothing new may be believed.
            Unavailable: no endpoint answered.
        """
        try:
            await self.steady.survey(max(0, self._settings.confirmations - 1))
        except Disagreement:
            self._disagreements.inc()
            raise
        finally:
            self._measure()

    async def wait(self) -> None:
        """Until it is time for the next look: a new head was announced, or the poll is due."""
        seconds = self._settings.poll_seconds
        if self._heads.live:
            seconds = max(seconds, min(LONGEST_POLL_SECONDS, WOKEN_POLLS * seconds))
        try:
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        except TimeoutError:
            return
        self._bell.clear()

    def summary(self) -> str:
        """What is wrong with the endpoints, for the readiness line; empty when nothing is."""
        now = asyncio.get_running_loop().time()
        resting = [e for e in self.provider.endpoints if e.health.is_resting(now)]
        notes = [f"{e.name} rests: {e.note}" for e in resting]
        if self.steady.disagreement:
            notes.append(f"new deposits wait: {self.steady.disagreement}")
        return "; ".join(notes)

    def _measure(self) -> None:
        now = asyncio.get_running_loop().time()
        endpoints = self.provider.endpoints
        self._usable.set(sum(not e.health.is_resting(now) for e in endpoints))
        for endpoint in endpoints:
            self._latency.labels(endpoint.name).set(endpoint.health.latency_seconds)
        self._subscribed.set(len(self._heads.live))


async def first_contact(
    connection: Connection, contracts: Contracts, tell: Callable[[str], None]
) -> int:
    """Wait for the chain and check its contracts; the dispute window in seconds.

    RPC down at the start is waited for; `tell` is given the reason each time.

    Raises:
        InvalidRequest: the contracts are not those of the deployment.
    """
    while True:
        try:
            generation = await connection.check(contracts.deployment)
            _log.info("contracts found", abi=generation.value)
            return await contracts.dispute_window_seconds()
        except Unavailable as error:
            tell(error.message)
            _log.warning("chain not reachable", error=error.message)
            await asyncio.sleep(RPC_RETRY_SECONDS)
