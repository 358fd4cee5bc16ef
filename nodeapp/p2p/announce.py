"""Telling the network what is offered here, and telling it anew when that changes.

Provider records and the capability record go into the DHT, the latter into gossip too, and the
host's own addresses to the local network. Nothing here is fatal: a lost bootstrap node, a chain
or a model that does not answer is tried again.
"""

from __future__ import annotations

import asyncio

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.network.host import Libp2pHost
from nodeapp.network.mdns import announcing
from nodeapp.p2p.engines import Engines
from nodeapp.p2p.markets import Market, Markets
from nodeapp.p2p.offer import Offer
from nodeapp.service.logs import get_logger
from nodeapp.service.settings import P2pSettings
from nodeapp.wire.capability import GOSSIP_TOPIC, dht_key
from nodeapp.wire.provider_key import any_host_key, provider_key

ANNOUNCE_RETRY_SECONDS = 5.0
MODEL_LOOK_SECONDS = 2.0
GOSSIP_SECONDS = 60.0
GOSSIP_REST_SECONDS = 5.0
"""After a peer came or went: its stream must be open before it hears us."""
LAN_RETRY_SECONDS = 60.0
ANNOUNCE_REST_SECONDS = 15.0
"""Between two announcements, however many renters come and go meanwhile."""
LISTING_WAIT_SECONDS = 25.0
"""How long one question after the listing's version stays open."""
_log = get_logger(__name__)


class Announcer:
    """One task for each thing that changes by itself, or has to be told again."""

    def __init__(self, settings: P2pSettings, markets: Markets, inference: Engines) -> None:
        self._settings = settings
        self._markets = markets
        self._inference = inference
        self.announced: tuple[str, ...] = ()
        """Models whose provider records are out there."""

    def start(self, host: Libp2pHost, tasks: asyncio.TaskGroup) -> None:
        """Go on until the tasks are cancelled; there is something to offer already."""
        tasks.create_task(self._announce(host))
        if self._settings.mdns:
            tasks.create_task(self._tell_lan(host))
        if self._settings.gossip:
            tasks.create_task(self._gossip(host))
        for market in self._markets.all:
            tasks.create_task(self._follow_listing(host, market))
        for market in self._markets.further:
            tasks.create_task(self._announce_further(host, market))
        tasks.create_task(self._follow_inference(host))

    async def _announce(self, host: Libp2pHost) -> None:
        """Keep provider records alive; a lost bootstrap is retried, never fatal."""
        while True:
            pause, ways_in = ANNOUNCE_RETRY_SECONDS, host.ways_in()
            rest = asyncio.get_running_loop().time() + ANNOUNCE_REST_SECONDS
            try:
                await host.dht.join(self._settings.bootstrap)
                ways_in = host.ways_in()
                offer = await self._markets.first.offer(host)
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
                offer = await market.offer(host)
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
        offer = await self._markets.first.offer(host)
        await self._provide(host, offer)
        await self._publish(host, offer)

    async def _provide(self, host: Libp2pHost, offer: Offer) -> bool:
        done = await self._provide_keys(host, offer)
        if done:
            self.announced = tuple(model.model_id for model in offer.record.models)
            _log.info("announced", models=self.announced)
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
                self._markets.first.offers.renew()
                offer = await self._markets.first.offer(host)
                await host.gossip.publish(GOSSIP_TOPIC, offer.capability.SerializeToString())
            except NodeError as error:
                _log.warning("no gossip", code=error.code, error=error.message)
            await host.ways_in_changed(ways_in, GOSSIP_SECONDS)
            await asyncio.sleep(GOSSIP_REST_SECONDS)

    async def _publish(self, host: Libp2pHost, offer: Offer) -> bool:
        """Whether a peer keeps our record: who cannot reach us now still sees what we offer."""
        value = offer.capability.SerializeToString()
        return await host.dht.put_value(dht_key(host.peer_id), value) > 0

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
