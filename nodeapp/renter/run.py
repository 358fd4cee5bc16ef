"""Composition root of a renter's run: libp2p host, chain views, wallet, then one task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import NotFound, Unavailable
from nodeapp.core.ids import Address, ModelId
from nodeapp.evm.accounts import Wallet, load_keystore
from nodeapp.evm.contracts import Contracts, SessionStatus
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.provider import Provider
from nodeapp.network.host import Libp2pHost
from nodeapp.network.mdns import LanPeers, listening
from nodeapp.network.settings import DhtMode, NetworkSettings
from nodeapp.renter.answer import Asker, Question, unpaced
from nodeapp.renter.discovery import Discovery, FoundHost
from nodeapp.renter.events import AnswerEnded, HostFound, Pace, Report, SessionClosed, SessionPaid
from nodeapp.renter.payment import open_paid_session
from nodeapp.renter.record import SessionHead, SessionRecord, newest_session
from nodeapp.renter.results import Results
from nodeapp.renter.settings import RenterSettings
from nodeapp.renter.sources import Sources, is_private_network
from nodeapp.renter.standing import Standings, ranked
from nodeapp.security.capability import capability_rule
from nodeapp.service.clock import Clock, SystemClock
from nodeapp.wire.capability import DHT_NAMESPACE


@dataclass(frozen=True, slots=True)
class Renter:
    """A renter that is connected to chain and network."""

    settings: RenterSettings
    wallet: Wallet
    contracts: Contracts
    host: Libp2pHost
    clock: Clock
    report: Report
    standings: Standings
    lan: LanPeers | None = None
    pace: Pace = unpaced

    @property
    def state_dir(self) -> Path:
        """Where session records lie."""
        return Path(self.settings.state_dir)

    async def find_hosts(self, model_id: ModelId) -> list[FoundHost]:
        """Checked hosts, best first."""
        found = await self.discovery().find(model_id, max_price=self.settings.max_price_per_token)
        now = self.clock.unix_seconds()
        return ranked(found, self.standings, self.settings.prefer, now)

    def discovery(self) -> Discovery:
        """Looks at every source of hosts."""
        settings = self.settings
        sources = Sources(
            self.host,
            self.contracts,
            settings.bootstrap,
            self.standings,
            self.clock,
            lan=self.lan,
        )
        return Discovery(sources, require_proofs=settings.require_proofs)

    async def others(self, model_id: ModelId, tried: Collection[Address]) -> list[FoundHost]:
        """Hosts that were not tried yet, best first."""
        try:
            found = await self.find_hosts(model_id)
        except (NotFound, Unavailable):
            return []
        return [host for host in found if host.wallet not in tried]

    async def pay(
        self, model_id: ModelId, *, avoid: Collection[Address] = frozenset()
    ) -> SessionRecord:
        """Find a host and open a paid session with it.

        Raises:
            NotFound: nobody but the hosts to avoid offers the model.
        """
        begun = self.clock.monotonic_seconds()
        choice = [host for host in await self.find_hosts(model_id) if host.wallet not in avoid]
        if not choice:
            raise NotFound(f"no other host offers model {model_id} now")
        found = choice[0]
        self.report(
            HostFound(
                peer_id=found.record.peer_id,
                wallet=found.record.wallet,
                address=found.address,
                model_id=model_id,
                model=found.offer.name,
                price_per_token=found.offer.price_per_token,
                source=found.source,
                seconds=round(self.clock.monotonic_seconds() - begun, 3),
            )
        )
        begun = self.clock.monotonic_seconds()
        paid = await open_paid_session(
            self.contracts, self.wallet, found.record.wallet, found.offer, self.settings
        )
        head = SessionHead(
            chain_id=found.record.chain_id,
            marketplace=found.record.marketplace,
            job_id=paid.job_id,
            host=found.record.wallet,
            peer_id=found.record.peer_id,
            model_id=model_id,
            portal_url=found.record.portal_url,
            addresses=(found.address, *found.record.addresses),
        )
        record = await asyncio.to_thread(SessionRecord.create, self.state_dir, head)
        seconds = round(self.clock.monotonic_seconds() - begun, 3)
        self.report(SessionPaid(paid.job_id, paid.deposit, paid.tx_hash, paid.gas_used, seconds))
        return record

    async def reopen(self, model_id: ModelId) -> SessionRecord | None:
        """The newest session if it is still active, for this model and on this chain."""
        try:
            job_id = newest_session(self.state_dir)
            record = await asyncio.to_thread(SessionRecord.load, self.state_dir, job_id)
            job = await self.contracts.session(job_id)
        except NotFound:
            return None
        paid = (job.status, job.depositor, job.host, job.model_id)
        known = (SessionStatus.ACTIVE, self.wallet.address, record.head.host, model_id)
        return record if paid == known and record.head.model_id == model_id else None

    async def ask(self, record: SessionRecord, question: Question) -> AnswerEnded:
        """One question on a paid session, of this host alone."""
        asker = self.asker(record, self.report)
        return await asker.ask(question, patience_seconds=self.settings.resume_seconds)

    async def close(self, record: SessionRecord) -> None:
        """Tell the host that the session is over."""
        asker = self.asker(record, self.report)
        state = await asker.close(patience_seconds=self.settings.resume_seconds)
        tokens = max(state.claimed, state.acknowledged)
        is_claimable = tokens >= self.settings.proof_interval_tokens
        self.report(SessionClosed(record.head.job_id, state.phase, is_claimable))

    def asker(self, record: SessionRecord, report: Report) -> Asker:
        """For one question on a paid session."""
        return Asker(
            self.host, self.wallet, record, clock=self.clock, report=report, pace=self.pace
        )


@asynccontextmanager
async def running_renter(
    settings: RenterSettings, report: Report, pace: Pace = unpaced
) -> AsyncIterator[Renter]:
    """Connect to chain and network; closes both.

    Raises:
        InvalidRequest: files or chain id do not fit.
        Unavailable: the chain does not answer.
    """
    async with open_chain(settings) as (wallet, contracts):
        died = asyncio.Event()
        async with Libp2pHost.running(
            network_of(settings), on_death=lambda _reason: died.set()
        ) as host:
            standings = await asyncio.to_thread(Standings.load, Path(settings.state_dir))
            async with AsyncExitStack() as stack:
                lan = await stack.enter_async_context(listening()) if settings.mdns else None
                yield Renter(
                    settings, wallet, contracts, host, SystemClock(), report, standings, lan, pace
                )


def network_of(settings: RenterSettings) -> NetworkSettings:
    """A renter dials and is not dialled."""
    return NetworkSettings(
        identity_path=Path(settings.state_dir) / "identity.key",
        listen=(),
        dht_mode=DhtMode.CLIENT,
        record_rules={DHT_NAMESPACE: capability_rule(SystemClock().unix_seconds)},
    )


def results_of(settings: RenterSettings, head: SessionHead, stack: AsyncExitStack) -> Results:
    """What the host of a session published; a libp2p host is started when it is needed."""

    async def start_host(stack: AsyncExitStack) -> Libp2pHost:
        running = Libp2pHost.running(network_of(settings), on_death=lambda _reason: None)
        return await stack.enter_async_context(running)

    return Results(head, is_private_network(settings.bootstrap), start_host, stack)


@asynccontextmanager
async def open_chain(settings: RenterSettings) -> AsyncIterator[tuple[Wallet, Contracts]]:
    """Wallet and contract views only: what verifying needs."""
    wallet = await asyncio.to_thread(
        load_keystore, Path(settings.keystore_file), Path(settings.password_file)
    )
    deployment = await asyncio.to_thread(load_deployment, Path(settings.deployment_file))
    async with Provider(settings.rpc_urls, chain_id=settings.chain_id) as provider:
        contracts = Contracts(provider, deployment)
        await contracts.check()
        yield wallet, contracts
