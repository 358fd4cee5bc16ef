"""The p2p process: host, handlers, announcements; everything it needs is built here or in main."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import stamina
from aiohttp import web

from nodeapp.core.errors import NodeError, NotFound, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.network.host import Libp2pHost
from nodeapp.network.mdns import announcing
from nodeapp.network.settings import NetworkSettings
from nodeapp.network.streams import Stream
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.bans import Bans
from nodeapp.p2p.beat import Beat
from nodeapp.p2p.conversation import Conversation, ConversationMetrics, Services
from nodeapp.p2p.directory import Directory, serve_capability
from nodeapp.p2p.engines import Engines
from nodeapp.p2p.forward import RouterForward
from nodeapp.p2p.live import LiveConversations
from nodeapp.p2p.markets import Market, Markets
from nodeapp.p2p.offer import Offer
from nodeapp.p2p.reach import REACH_PROTOCOL, Reachability, ask_peers, serve_dial_back
from nodeapp.p2p.relay import RelaySettings
from nodeapp.p2p.relays import LOOK_SECONDS, Reservations
from nodeapp.p2p.results import serve_result
from nodeapp.rpc.storage import StorageClient
from nodeapp.security.capability import capability_rule
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.server import endpoint, query
from nodeapp.service.settings import P2pSettings
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import DHT_NAMESPACE, GOSSIP_TOPIC, dht_key
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_p2p import BanList, BanRequest, BanView, LiftRequest, NetworkView
from nodeapp.wire.provider_key import any_host_key, provider_key

ANNOUNCE_RETRY_SECONDS = 5.0
MODEL_LOOK_SECONDS = 2.0
GOSSIP_SECONDS = 60.0
GOSSIP_REST_SECONDS = 5.0
"""After a peer came or went: its stream must be open before it hears us."""
REACH_SECONDS = 900.0
REACH_SETTLE_SECONDS = 2.0
LAN_RETRY_SECONDS = 60.0
ANNOUNCE_REST_SECONDS = 15.0
"""Between two announcements, however many renters come and go meanwhile."""
LISTING_WAIT_SECONDS = 25.0
"""How long one question after the listing's version stays open."""
_log = get_logger(__name__)


class P2pNode:
    """Process of lifecycle.run_service."""

    def __init__(self, shell: Shell, settings: P2pSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._inference = Engines(shell)
        self._markets = Markets(shell, settings, self._inference)
        self._chain, self._offers = self._markets.first.chain, self._markets.first.offers
        self._admission = Admission(
            handshakes_per_minute=settings.handshakes_per_minute,
            max_streams_per_peer=settings.max_requests_per_peer,
        )
        self._metrics = ConversationMetrics(shell.metrics)
        self._bans = Bans(
            shell.paths.process_state("p2p") / "bans.json", shell.clock, shell.metrics
        )
        self._resources = AsyncExitStack()
        self._host: Libp2pHost | None = None
        self._live = LiveConversations()
        self._beat = Beat(settings.flush_seconds)
        self._reservations = Reservations(settings.relays, shell.clock)
        self._router = RouterForward(settings, shell.fail)
        self._announced: tuple[str, ...] = ()
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
            web.post("/v1/bans/add", endpoint(BanRequest, self.ban)),
            web.post("/v1/bans/lift", endpoint(LiftRequest, self.lift)),
            web.post("/v1/drain", endpoint(Empty, self.pause)),
            web.post("/v1/resume", endpoint(Empty, self.resume)),
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
        tasks.create_task(self._announce(host))
        if self._settings.relays:
            tasks.create_task(self._keep_reservations(host))
        tasks.create_task(self._watch_reach(host))
        tasks.create_task(self._router.keep())
        if self._settings.mdns:
            tasks.create_task(self._tell_lan(host))
        if self._settings.gossip:
            host.gossip.listen(GOSSIP_TOPIC, self._directory.take)
            tasks.create_task(self._gossip(host))
        for market in self._markets.all:
            tasks.create_task(self._follow_listing(host, market))
        for market in self._markets.further:
            tasks.create_task(self._announce_further(host, market))
        tasks.create_task(self._follow_inference(host))

    def readiness(self) -> str:
        """What is served or waited for."""
        if self._waits_for or self._host is None:
            return f"waits for {self._waits_for}"
        addresses = ", ".join(self._host.addresses)
        if self._reach.is_reachable is False:
            return f"{addresses}; {self._reach.sentence}"
        return f"{addresses}; announced {len(self._announced)} models"

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
            announced_models=self._announced,
            conversations=len(self._live),
            is_reachable=self._reach.is_reachable,
            reachability="; ".join(filter(None, self._ways_in())),
        )

    async def _tell_lan(self, host: Libp2pHost) -> None:
        """Be found on the local network; interfaces may come up after us."""
        while True:
            try:
                async with announcing(host.peer_id, host.listening) as told:
                    _log.info("told the local network", addresses=told)
                    await asyncio.Event().wait()
            except Unavailable as error:
                _log.warning("not told the local network", error=error.message)
            await asyncio.sleep(LAN_RETRY_SECONDS)

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
            await self._offer(host)
        except NodeError as error:
            self._waits_for = error.message
            raise

    async def _offer(self, host: Libp2pHost) -> Offer:
        return await self._offers.current(host.peer_id, host.addresses, host.sign)

    async def _announce(self, host: Libp2pHost) -> None:
        """Keep provider records alive; a lost bootstrap is retried, never fatal."""
        while True:
            pause, ways_in = ANNOUNCE_RETRY_SECONDS, host.ways_in()
            rest = asyncio.get_running_loop().time() + ANNOUNCE_REST_SECONDS
            try:
                await host.dht.join(self._settings.bootstrap)
                ways_in = host.ways_in()
                offer = await self._offer(host)
                if await self._provide(host, offer) and await self._publish(host, offer):
                    # Half its life later the record is another one.
                    half_life = self._settings.record_ttl_seconds / 2
                    pause = min(self._settings.reprovide_seconds, half_life)
            except NodeError as error:
                _log.warning("announcement failed", code=error.code, error=error.message)
            # Records live in other nodes' memory: a returned bootstrap node has none of ours.
            await host.ways_in_changed(ways_in, pause)
            if pause != ANNOUNCE_RETRY_SECONDS:
                await asyncio.sleep(rest - asyncio.get_running_loop().time())

    async def _announce_further(self, host: Libp2pHost, market: Market) -> None:
        """Keep provider records of another chain alive; it may come up at any time."""
        while True:
            pause, ways_in = ANNOUNCE_RETRY_SECONDS, host.ways_in()
            try:
                offer = await market.offers.current(host.peer_id, host.addresses, host.sign)
                if await self._provide_keys(host, offer):
                    pause = self._settings.reprovide_seconds
                    _log.info("announced", chain_id=offer.record.chain_id)
            except NodeError as error:
                _log.warning("chain is not offered", process=market.process, error=error.message)
            await host.ways_in_changed(ways_in, pause)
            await asyncio.sleep(ANNOUNCE_RETRY_SECONDS)

    async def _follow_listing(self, host: Libp2pHost, market: Market) -> None:
        """A price or a model that changed on chain is offered at once, not an hour later."""
        known = 0
        while True:
            try:
                version = await market.listing.version(known, wait_seconds=LISTING_WAIT_SECONDS)
                if version != known:
                    known = version
                    market.offers.renew()
                    if market is self._markets.first:
                        await self._offer_anew(host)
            except NodeError as error:
                # Not sold any more, or chain restarts: who asks now is told the same.
                _log.warning("listing cannot be offered", code=error.code, error=error.message)
                await asyncio.sleep(ANNOUNCE_RETRY_SECONDS)

    async def _follow_inference(self, host: Libp2pHost) -> None:
        """Another model, or fewer answers at once by a hot GPU, is offered within seconds."""
        known: tuple[str, int] | None = None
        while True:
            try:
                state = await self._inference.model_state()
                found = (state.name, state.slots)
                if known not in (None, found) and state.slots:
                    await self._offer_anew(host)
                if known is None or state.slots:
                    known = found
            except NodeError as error:
                _log.warning("model cannot be offered", code=error.code, error=error.message)
            await asyncio.sleep(MODEL_LOOK_SECONDS)

    async def _offer_anew(self, host: Libp2pHost) -> None:
        for market in self._markets.all:
            market.offers.renew()
        offer = await self._offer(host)
        await self._provide(host, offer)
        await self._publish(host, offer)

    async def _provide(self, host: Libp2pHost, offer: Offer) -> bool:
        done = await self._provide_keys(host, offer)
        if done:
            self._announced = tuple(model.model_id for model in offer.record.models)
            _log.info("announced", models=self._announced)
        return done

    async def _provide_keys(self, host: Libp2pHost, offer: Offer) -> bool:
        chain_id = offer.record.chain_id
        done = await host.dht.provide(any_host_key(chain_id))
        for model in offer.record.models:
            done = await host.dht.provide(provider_key(model.model_id, chain_id)) and done
        return done

    async def _gossip(self, host: Libp2pHost) -> None:
        """Tell of ourselves now and then, so that whoever joined since knows us too."""
        while True:
            ways_in = host.ways_in()
            try:
                # A record that is known already goes no further: each telling is a new one.
                self._offers.renew()
                offer = await self._offer(host)
                await host.gossip.publish(GOSSIP_TOPIC, offer.capability.SerializeToString())
            except NodeError as error:
                _log.warning("no gossip", code=error.code, error=error.message)
            await host.ways_in_changed(ways_in, GOSSIP_SECONDS)
            await asyncio.sleep(GOSSIP_REST_SECONDS)

    async def _publish(self, host: Libp2pHost, offer: Offer) -> bool:
        """Whether a peer keeps our record: who cannot reach us now still sees what we offer."""
        value = offer.capability.SerializeToString()
        return await host.dht.put_value(dht_key(host.peer_id), value) > 0

    async def _serve_inference(self, stream: Stream) -> None:
        host = self._require_host()
        offer = await self._offer(host)
        services = Services(
            self._chain,
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
        )
        choose = partial(self._markets.choose, host)
        conversation = Conversation(stream, services, offer, choose)
        with self._live.line(conversation):
            await conversation.run()

    async def _serve_capability(self, stream: Stream) -> None:
        host = self._require_host()

        async def own(chain_id: int) -> pb.Capability:
            offer = await self._offer(host)
            if chain_id not in (0, offer.record.chain_id):
                offer, _chain = await self._markets.choose(host, chain_id)
            return offer.capability

        await serve_capability(stream, self._admission, self._directory, own)

    def _require_host(self) -> Libp2pHost:
        if self._host is None:
            raise RuntimeError("p2p is used before it was started")
        return self._host
