"""Libp2pHost: one libp2p host on its own trio thread, spoken to from asyncio.

TCP, noise and yamux only; QUIC, TLS, mplex, secio and plaintext are neither offered nor accepted.
`import libp2p` takes seconds, so it happens on the trio thread at start. The process sets
`settings.PROCESS_ENVIRONMENT` before it starts Python.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog
import trio

from nodeapp.core.errors import NodeError, NotFound, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.network import circuit
from nodeapp.network.bridge import Bridge
from nodeapp.network.dht import Dht
from nodeapp.network.dial import dial
from nodeapp.network.gossip import Gossip
from nodeapp.network.identity import Identity, IdentityLock, load_or_create_identity
from nodeapp.network.library import (
    ConnectionNotifee,
    is_unsupported,
    limit_inbound,
    new_library_host,
    parse_multiaddr,
    parse_peer_id,
    refuse_taken_port,
    remote_ip,
)
from nodeapp.network.settings import NetworkSettings
from nodeapp.network.streams import Stream

Handler = Callable[[Stream], Awaitable[None]]
CONNECT_SECONDS: Final = 20.0
STREAM_SECONDS: Final = 15.0
CLOSE_SECONDS: Final = 2.0
INBOUND_STREAMS_PER_PEER: Final = 64
"""More are reset: a stream may hold about 1.5 MB of ours."""

_log = structlog.get_logger(__name__)


class Libp2pHost:
    """Built by `start`; every method is for the asyncio loop it was started on."""

    def __init__(
        self,
        settings: NetworkSettings,
        identity: Identity,
        tasks: asyncio.TaskGroup,
        on_death: Callable[[str], None],
    ) -> None:
        """Use `start`."""
        self._settings = settings
        self._identity = identity
        self._tasks = tasks
        self._handlers: dict[str, Handler] = {}
        self._inbound: Counter[PeerId] = Counter()
        self._addresses: tuple[str, ...] = ()
        self._listening: tuple[str, ...] = ()
        self._circuits: dict[PeerId, str] = {}
        self._accepts_circuits = False
        self._connected: frozenset[PeerId] = frozenset()
        self._changed = asyncio.Event()
        self._bridge = Bridge(self._run, on_death)
        self._lock: IdentityLock | None = None
        self._library: Any = None
        self.dht = Dht(self._bridge, self.connect, settings)
        self.gossip = Gossip(self._bridge, settings)

    @classmethod
    async def start(
        cls,
        settings: NetworkSettings,
        tasks: asyncio.TaskGroup,
        *,
        on_death: Callable[[str], None],
    ) -> Libp2pHost:
        """Listen, ready for streams when it returns.

        Args:
            settings: see NetworkSettings.
            tasks: owns the handlers' tasks.
            on_death: called on the loop with the reason when the trio thread ends unasked; the
                process must end then, nothing here works any more.
        Raises:
            Unavailable: port taken, identity in use by another process, start too slow.
            InvalidRequest: an address that is none.
            Corrupt: the identity file cannot be trusted.
        """
        identity = await asyncio.to_thread(load_or_create_identity, settings.identity_path)
        host = cls(settings, identity, tasks, on_death)
        host._lock = IdentityLock(settings.identity_path)
        try:
            for address in settings.listen:
                refuse_taken_port(address)
            await host._bridge.start(settings.start_seconds)
        except BaseException:
            await host.stop()
            raise
        _log.info("libp2p host listens", peer_id=host.peer_id, addresses=host.addresses)
        return host

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, settings: NetworkSettings, *, on_death: Callable[[str], None]
    ) -> AsyncIterator[Libp2pHost]:
        """`start` and `stop` around a block, with a TaskGroup of its own."""
        async with asyncio.TaskGroup() as tasks:
            host = await cls.start(settings, tasks, on_death=on_death)
            try:
                yield host
            finally:
                await host.stop()

    @property
    def peer_id(self) -> PeerId:
        """This host's id."""
        return self._identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """What others dial: multiaddrs with /p2p/, announced if there are any; relays' last."""
        return (*self._addresses, *self._circuits.values())

    @property
    def listening(self) -> tuple[str, ...]:
        """Multiaddrs that are listened at, with the ports that port 0 became."""
        return self._listening

    def sign(self, message: bytes) -> bytes:
        """Signature of the identity key, 64 bytes; see wire/peer_id.py for checking one."""
        return self._identity.sign(message)

    def connected_peers(self) -> frozenset[PeerId]:
        """Peers with a live connection, as last told by the trio thread."""
        return self._connected

    def ways_in(self) -> frozenset[PeerId]:
        """Bootstrap nodes with a live connection; all peers, as long as none was ever reached."""
        known = self.dht.ways_in
        return self._connected & known if known else self._connected

    async def peers_changed(
        self, known: frozenset[PeerId], deadline_seconds: float
    ) -> frozenset[PeerId]:
        """Wait until the connected peers are others than `known`, or the deadline.

        Returns:
            The peers connected then.
        """
        return await self._other_than(known, self.connected_peers, deadline_seconds)

    async def ways_in_changed(
        self, known: frozenset[PeerId], deadline_seconds: float
    ) -> frozenset[PeerId]:
        """The same of `ways_in`.

        Whoever announces itself uses it: a bootstrap node that restarted has forgotten us, while
        announcing for every renter that comes and goes would be work for the whole network.
        """
        return await self._other_than(known, self.ways_in, deadline_seconds)

    async def _other_than(
        self, known: frozenset[PeerId], look: Callable[[], frozenset[PeerId]], seconds: float
    ) -> frozenset[PeerId]:
        try:
            async with asyncio.timeout(seconds):
                while look() == known:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return look()

    def set_handler(self, protocol_id: str, handler: Handler) -> None:
        """Serve a protocol; the handler runs on the loop, one task a stream.

        When it returns the stream is closed, when it raises the stream is reset.

        Raises:
            Unavailable: the trio thread has ended.
        """
        is_new = protocol_id not in self._handlers
        self._handlers[protocol_id] = handler
        if is_new:
            self._bridge.post(self._offer, protocol_id)

    async def connect(self, address: str, deadline_seconds: float = CONNECT_SECONDS) -> PeerId:
        """Dial exactly this address, or keep the connection there is.

        Takes 0.25 s at least: 0.8.1 always waits out its happy-eyeballs delay.

        Args:
            address: multiaddr that ends in /p2p/<peer id>.
            deadline_seconds: for dial and handshake.
        Raises:
            InvalidRequest: not such an address.
            Unavailable: no connection.
        """
        return await self._bridge.call(
            f"connect to {address[:200]}", lambda: dial(self._library, address), deadline_seconds
        )

    async def reserve(self, relay: str) -> float:
        """Be reachable through a relay from now on; ask again before the time is over.

        Args:
            relay: its multiaddr, with /p2p/.
        Returns:
            Unix second of the end; the relay's address is among `addresses` until `give_up`.
        Raises:
            Unavailable: no connection, or refused.
        """
        peer_id = await self.connect(relay)
        if not self._accepts_circuits:
            self._accepts_circuits = True
            await self._bridge.call("accept circuits", self._accept_circuits, STREAM_SECONDS)
        until = await self._bridge.call(
            f"reserve at {peer_id}",
            lambda: circuit.reserve(self._library, parse_peer_id(peer_id)),
            STREAM_SECONDS,
        )
        self._circuits[peer_id] = f"{relay}{circuit.MARK}/p2p/{self.peer_id}"
        return float(until)

    def give_up(self, relay: PeerId) -> None:
        """Do not tell of this relay any more."""
        self._circuits.pop(relay, None)

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to the peer; its streams end.

        Raises:
            Unavailable: the trio thread has ended.
        """
        await self._bridge.call(
            f"disconnect from {peer_id}",
            lambda: self._library.disconnect(parse_peer_id(peer_id)),
            CONNECT_SECONDS,
        )

    async def open_stream(
        self, peer_id: PeerId, protocol_ids: Sequence[str], deadline_seconds: float = STREAM_SECONDS
    ) -> Stream:
        """Open a stream in the first of the protocols the peer offers; `connect` comes first.

        Raises:
            NotFound: the peer offers none of them.
            Unavailable: no connection, or the deadline passed.
        """
        return await self._bridge.call(
            f"open stream to {peer_id}",
            lambda: self._open_stream(peer_id, tuple(protocol_ids)),
            deadline_seconds,
        )

    async def protocols(self) -> frozenset[str]:
        """What this host offers to peers.

        Raises:
            Unavailable: the trio thread has ended.
        """

        async def offered() -> frozenset[str]:
            ids = self._library.get_mux().get_protocols()
            return frozenset(str(protocol_id) for protocol_id in ids if protocol_id)

        return await self._bridge.call("list protocols", offered, STREAM_SECONDS)

    async def stop(self) -> None:
        """Close everything within seconds; safe to call twice.

        Raises:
            Unavailable: the trio thread does not end.
        """
        try:
            await self._bridge.stop()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._connected = frozenset()

    async def _run(
        self, nursery: trio.Nursery, started: Callable[[], None], stop: trio.Event
    ) -> None:
        del nursery
        self._library = library = new_library_host(self._settings, self._identity)
        notifee = ConnectionNotifee(
            self._note_peers, self._settings.gate, self._settings.max_per_subnet
        )
        library.get_network().register_notifee(notifee)
        limit_inbound(library.get_network(), self._settings.max_per_subnet)
        listen = [parse_multiaddr(address) for address in self._settings.listen]
        # No cover for a stop: the block is left by returning, and then closes in order.
        async with (
            library.run(listen_addrs=listen),
            self.dht.running(library),
            self.gossip.running(library),
        ):
            # It would dial whatever the DHT mentioned until half the slots are in use.
            await library.get_network().auto_connector.stop()
            # `run` logs a failed bind and goes on.
            if len(library.get_transport_addrs()) < len(listen):
                raise Unavailable(f"cannot listen on all of {', '.join(self._settings.listen)}")
            self._listening = tuple(str(address) for address in library.get_transport_addrs())
            self._addresses = tuple(str(address) for address in library.get_addrs())
            started()
            await stop.wait()
            with trio.move_on_after(CLOSE_SECONDS):
                # One by one, as the library does it, takes 0.1 s a connection.
                async with trio.open_nursery() as closing:
                    for connection in library.get_network().get_connections():
                        closing.start_soon(connection.close)
                await library.close()

    def _offer(self, protocol_id: str) -> None:
        async def accept(net: Any) -> None:  # noqa: ANN401 - py-libp2p's stream
            peer_id = PeerId(str(net.muxed_conn.peer_id))
            address = remote_ip(net)
            is_served = self._settings.gate(peer_id, address)
            if not is_served or self._inbound[peer_id] >= INBOUND_STREAMS_PER_PEER:
                await net.reset()
                return
            self._inbound[peer_id] += 1
            try:
                stream = Stream(self._bridge, net, peer_id, protocol_id, address)
                self._bridge.to_loop(self._serve, stream)
                await stream.pump()
            finally:
                self._inbound[peer_id] -= 1
                if not self._inbound[peer_id]:
                    del self._inbound[peer_id]

        self._library.set_stream_handler(protocol_id, accept)

    def _serve(self, stream: Stream) -> None:
        work = self._handle(stream)
        try:
            self._tasks.create_task(work, name=f"stream {stream.protocol_id}")
        except RuntimeError:  # the group is ending: no new work
            work.close()
            stream.abandon()

    async def _handle(self, stream: Stream) -> None:
        try:
            await self._handlers[stream.protocol_id](stream)
            await stream.close()
        except NodeError as error:
            _log.debug(
                "stream ended early",
                peer_id=stream.remote_peer_id,
                code=error.code,
                error=str(error),
            )
        except Exception:  # noqa: BLE001 - ring one: a bug met by one peer must not end the others
            _log.exception("stream handler failed", peer_id=stream.remote_peer_id)
            stream.abandon()
        finally:
            if not stream.is_closing:
                stream.abandon()

    async def _accept_circuits(self) -> None:
        accept = circuit.acceptor(self._library, lambda: frozenset(self._circuits))
        self._library.set_stream_handler(circuit.STOP, accept)

    async def _open_stream(self, peer_id: PeerId, protocol_ids: tuple[str, ...]) -> Stream:
        from libp2p.host.exceptions import StreamFailure
        from libp2p.protocol_muxer.exceptions import MultiselectClientError

        try:
            net = await self._library.new_stream(parse_peer_id(peer_id), list(protocol_ids))
        except StreamFailure as error:
            if is_unsupported(error.__cause__, MultiselectClientError):
                offered = ", ".join(protocol_ids)
                raise NotFound(f"peer {peer_id} offers none of {offered}") from error
            raise
        stream = Stream(self._bridge, net, peer_id, str(net.get_protocol()), remote_ip(net))
        self._bridge.spawn(stream.pump)
        return stream

    def _note_peers(self) -> None:
        connections: Mapping[Any, Any] = self._library.get_network().connections
        peers = frozenset(PeerId(str(peer)) for peer, live in connections.items() if live)

        def note() -> None:
            self._connected = peers
            # A new one each time: several wait, and none may clear what another has not seen.
            self._changed.set()
            self._changed = asyncio.Event()

        self._bridge.to_loop(note)
        self.dht.note_peers()
