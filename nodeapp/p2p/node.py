"""The p2p process: host and handlers; everything it needs is built here or in main."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import stamina
from aiohttp import web

from nodeapp.core.errors import NodeError, NotFound
from nodeapp.core.ids import PeerId
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import NetworkSettings
from nodeapp.network.streams import Stream
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.announce import Announcer
from nodeapp.p2p.bans import Bans
from nodeapp.p2p.beat import Beat
from nodeapp.p2p.conversation import Conversation, ConversationMetrics, Services
from nodeapp.p2p.directory import Directory, serve_capability
from nodeapp.p2p.engines import Engines
from nodeapp.p2p.forward import RouterForward
from nodeapp.p2p.live import LiveConversations
from nodeapp.p2p.markets import Markets
from nodeapp.p2p.reach import REACH_PROTOCOL, Reachability, ask_peers, serve_dial_back
from nodeapp.p2p.relay import RelaySettings
from nodeapp.p2p.relays import LOOK_SECONDS, Reservations
from nodeapp.p2p.results import serve_result
from nodeapp.rpc.storage import StorageClient
from nodeapp.security.capability import capability_rule
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.server import endpoint, operator, query
from nodeapp.service.settings import P2pSettings
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import DHT_NAMESPACE, GOSSIP_TOPIC
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_p2p import BanList, BanRequest, BanView, LiftRequest, NetworkView

REACH_SECONDS = 900.0
REACH_SETTLE_SECONDS = 2.0
_log = get_logger(__name__)


class P2pNode:
    """Process of lifecycle.run_service."""

    def __init__(self, shell: Shell, settings: P2pSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._inference = Engines(shell)
        self._markets = Markets(shell, settings, self._inference)
        self._announcer = Announcer(settings, self._markets, self._inference)
        self._admission = Admission(
            handshakes_per_minute=settings.handshakes_per_minute,
            max_streams_per_peer=settings.max_requests_per_peer,
        )
        self._metrics = ConversationMetrics(shell.metrics)
        self._bans = Bans(
            shell.paths.process_state("p2p") / "bans.json",
            shell.clock,
            shell.metrics,
            shell.audit,
        )
        self._resources = AsyncExitStack()
        self._host: Libp2pHost | None = None
        self._live = LiveConversations()
        self._beat = Beat(settings.flush_seconds)
        self._reservations = Reservations(settings.relays, shell.clock)
        self._router = RouterForward(settings, shell.fail)
        self._directory = Directory(shell.clock.unix_seconds)
        self._reach = Reachability("not asked yet")
        self._reachable = shell.metrics.gauge(
            "reachable", "1: peers can dial this host, 0: they cannot, -1: not known"
        )
        self._waits_for = "libp2p"

    def routes(self) -> Sequence[web.RouteDef]:
        """What the operator sees and does."""
        return [
            web.get("/v1/network", query(self.view)),
            web.get("/v1/bans", query(self.ban_list)),
            web.post("/v1/bans/add", operator(endpoint(BanRequest, self.ban))),
            web.post("/v1/bans/lift", operator(endpoint(LiftRequest, self.lift))),
            web.post("/v1/drain", operator(endpoint(Empty, self.pause))),
            web.post("/v1/resume", operator(endpoint(Empty, self.resume))),
        ]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Ready when renters can be served; announcing goes on in the background."""
        await self._resources.enter_async_context(self._markets)
        await self._resources.enter_async_context(self._inference)
        announce = await self._router.announced()
        network = NetworkSettings(
            identity_path=self._shell.paths.process_state("p2p") / "identity.key",
            listen=(self._settings.listen,),
            announce=announce,
            max_connections=self._settings.max_connections,
            max_per_subnet=self._settings.max_connections_per_subnet,
            gate=self._admits,
            topics={GOSSIP_TOPIC: self._directory.accept} if self._settings.gossip else {},
            record_rules={DHT_NAMESPACE: capability_rule(self._shell.clock.unix_seconds)},
        )
        host = await Libp2pHost.start(network, tasks, on_death=self._shell.fail)
        self._host = host
        await self._wait_for_offer(host)
        host.set_handler(envelope.INFERENCE_PROTOCOL, self._serve_inference)
        host.set_handler(envelope.CAPABILITY_PROTOCOL, self._serve_capability)
        self._waits_for = ""
        storage = StorageClient(self._shell.paths.socket("s5"))
        host.set_handler(
            envelope.RESULTS_PROTOCOL,
            lambda stream: serve_result(stream, self._admission, storage),
        )
        host.set_handler(REACH_PROTOCOL, lambda stream: serve_dial_back(stream, self._admission))
        await self._reservations.look(host, is_needed=True)
        if self._settings.gossip:
            host.gossip.listen(GOSSIP_TOPIC, self._directory.take)
        self._announcer.start(host, tasks)
        if self._settings.relays:
            tasks.create_task(self._keep_reservations(host))
        tasks.create_task(self._watch_reach(host))
        tasks.create_task(self._router.keep())

    def readiness(self) -> str:
        """What is served or waited for."""
        if self._waits_for or self._host is None:
            return f"waits for {self._waits_for}"
        addresses = ", ".join(self._host.addresses)
        if self._reach.is_reachable is False:
            return f"{addresses}; {self._reach.sentence}"
        return f"{addresses}; announced {len(self._announcer.announced)} models"

    async def drain(self) -> None:
        """Let answers that are under way finish."""
        await self._live.drain()

    async def pause(self, _message: Empty) -> NetworkView:
        """Take no new conversation and wait for those under way, inside the caller's deadline."""
        await self._live.drain()
        return await self.view()

    async def resume(self, _message: Empty) -> NetworkView:
        """Serve again."""
        self._live.resume()
        return await self.view()

    async def stop(self) -> None:
        """Close the way in and the host, then the clients."""
        await self._router.close()
        if self._host is not None:
            await self._host.stop()
        await self._resources.aclose()

    async def view(self) -> NetworkView:
        """Who we are on the network."""
        host = self._require_host()
        return NetworkView(
            peer_id=host.peer_id,
            addresses=host.addresses,
            connected_peers=len(host.connected_peers()),
            announced_models=self._announcer.announced,
            conversations=len(self._live),
            is_reachable=self._reach.is_reachable,
            reachability="; ".join(filter(None, self._ways_in())),
        )

    def _ways_in(self) -> tuple[str, ...]:
        return (self._reach.sentence, self._router.sentence, self._reservations.sentence)

    async def _keep_reservations(self, host: Libp2pHost) -> None:
        """Relays come and go; who is reachable by itself needs none."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            is_needed = self._reach.is_reachable is not True
            await self._reservations.look(host, is_needed=is_needed)

    async def _watch_reach(self, host: Libp2pHost) -> None:
        """Look again when peers come or go while nothing is known, else now and then."""
        while True:
            peers = host.connected_peers()
            self._reach = await ask_peers(host, sorted(peers))
            known = self._reach.is_reachable
            self._reachable.set(-1 if known is None else int(known))
            if known is False:
                _log.warning("host cannot be reached", reason=self._reach.sentence)
            if known is None:
                await host.peers_changed(peers, REACH_SECONDS)
                await asyncio.sleep(REACH_SETTLE_SECONDS)
            else:
                await asyncio.sleep(REACH_SECONDS)

    async def ban_list(self) -> BanList:
        """Who is kept out now."""
        active = self._bans.active()
        return BanList(
            tuple(BanView(name, ban.reason, int(ban.until)) for name, ban in active.items())
        )

    async def ban(self, request: BanRequest) -> BanView:
        """Keep somebody out by the operator's word."""
        ban = self._bans.ban(request.name, request.reason, request.seconds)
        return BanView(request.name, ban.reason, int(ban.until))

    async def lift(self, request: LiftRequest) -> BanList:
        """Let somebody in again."""
        if not self._bans.lift(request.name):
            raise NotFound(f"{request.name} is not banned")
        return await self.ban_list()

    def _admits(self, peer_id: PeerId, address: str) -> bool:
        has_paid = self._admission.is_paying(peer_id)
        return self._bans.admits(peer_id, address, has_paid=has_paid)

    async def _wait_for_offer(self, host: Libp2pHost) -> None:
        """The others start beside us; nothing can be sold before both answer."""
        self._waits_for = "chain and inference"
        async for attempt in stamina.retry_context(
            on=NodeError, attempts=None, timeout=None, wait_initial=0.1, wait_max=1.0
        ):
            with attempt:
                await self._try_offer(host)

    async def _try_offer(self, host: Libp2pHost) -> None:
        try:
            await self._markets.first.offer(host)
        except NodeError as error:
            self._waits_for = error.message
            raise

    async def _serve_inference(self, stream: Stream) -> None:
        host = self._require_host()
        offer = await self._markets.first.offer(host)
        services = Services(
            self._markets.first.chain,
            self._inference,
            self._admission,
            RelaySettings(
                self._settings.receipt_window_tokens,
                self._beat,
                self._settings.receipt_timeout_seconds,
            ),
            self._settings.heartbeat_seconds,
            self._metrics,
            self._live,
            self._bans,
            self._shell.audit,
        )
        choose = partial(self._markets.choose, host)
        conversation = Conversation(stream, services, offer, choose)
        with self._live.line(conversation):
            await conversation.run()

    async def _serve_capability(self, stream: Stream) -> None:
        host = self._require_host()

        async def own(chain_id: int) -> pb.Capability:
            offer = await self._markets.first.offer(host)
            if chain_id not in (0, offer.record.chain_id):
                offer, _chain = await self._markets.choose(host, chain_id)
            return offer.capability

        await serve_capability(stream, self._admission, self._directory, own)

    def _require_host(self) -> Libp2pHost:
        if self._host is None:
            raise RuntimeError("p2p is used before it was started")
        return self._host
