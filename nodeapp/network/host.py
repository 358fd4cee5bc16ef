"""Libp2pHost: one libp2p host on its own trio thread, spoken to from asyncio.

TCP, noise and yamux only; QUIC, TLS, mplex, secio and plaintext are neither offered nor accepted.
`import libp2p` takes seconds, so it happens on the trio thread at start. The process sets
`settings.PROCESS_ENVIRONMENT` before it starts Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog
import trio

from nodeapp.core.errors import InvalidRequest, NodeError, NotFound, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.network.bridge import Bridge
from nodeapp.network.dht import Dht
from nodeapp.network.identity import Identity, IdentityLock, load_or_create_identity
from nodeapp.network.settings import NetworkSettings
from nodeapp.network.streams import Stream

Handler = Callable[[Stream], Awaitable[None]]
CONNECT_SECONDS: Final = 20.0
STREAM_SECONDS: Final = 15.0
NEGOTIATE_SECONDS: Final = 10
CLOSE_SECONDS: Final = 2.0
INBOUND_STREAMS_PER_PEER: Final = 64
"""More are reset: a stream may hold about 1.5 MB of ours."""
INBOUND_STREAMS: Final = 2000
"""Over all peers and protocols."""
CONNECTIONS_PER_PEER: Final = 4

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
        self._connected: frozenset[PeerId] = frozenset()
        self._bridge = Bridge(self._run, on_death)
        self._lock: IdentityLock | None = None
        self._library: Any = None
        self.dht = Dht(self._bridge, self.connect, settings.dht_mode)

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
                _refuse_taken_port(address)
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
        """What others dial: multiaddrs with /p2p/, announced ones if there are any."""
        return self._addresses

    def connected_peers(self) -> frozenset[PeerId]:
        """Peers with a live connection, as last told by the trio thread."""
        return self._connected

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
            f"connect to {address[:200]}", lambda: self._connect(address), deadline_seconds
        )

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to the peer; its streams end.

        Raises:
            Unavailable: the trio thread has ended.
        """
        await self._bridge.call(
            f"disconnect from {peer_id}", lambda: self._disconnect(peer_id), CONNECT_SECONDS
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
        self._library = library = _new_library_host(self._settings, self._identity)
        library.get_network().register_notifee(_Notifee(self._note_peers))
        listen = [_multiaddr(address) for address in self._settings.listen]
        # No cover for a stop: the block is left by returning, and then closes in order.
        async with library.run(listen_addrs=listen), self.dht.running(library):
            # It would dial whatever the DHT mentioned until half the slots are in use.
            await library.get_network().auto_connector.stop()
            # `run` logs a failed bind and goes on.
            if len(library.get_transport_addrs()) < len(listen):
                raise Unavailable(f"cannot listen on all of {', '.join(self._settings.listen)}")
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
            if self._inbound[peer_id] >= INBOUND_STREAMS_PER_PEER:
                await net.reset()
                return
            self._inbound[peer_id] += 1
            try:
                stream = Stream(self._bridge, net, peer_id, protocol_id)
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

    async def _connect(self, address: str) -> PeerId:
        from libp2p.peer.peerinfo import info_from_p2p_addr

        target = _multiaddr(address)
        try:
            peer = info_from_p2p_addr(target)
        except Exception as error:
            raise InvalidRequest(
                f"address {address[:200]} does not end in /p2p/<peer id>"
            ) from error
        if peer.peer_id == self._library.get_id():
            raise InvalidRequest("that is this host's own address")
        network = self._library.get_network()
        # 0.8.1 refuses a peer id for 60 s after a failed dial, even when it is back, and dials
        # one address per transport, the oldest first: a deliberate dial starts from scratch.
        network.unblock_peer(peer.peer_id)
        if peer.peer_id not in network.connections:
            self._library.get_peerstore().clear_addrs(peer.peer_id)
        await self._library.connect(peer)
        return PeerId(str(peer.peer_id))

    async def _disconnect(self, peer_id: PeerId) -> None:
        await self._library.disconnect(_library_id(peer_id))

    async def _open_stream(self, peer_id: PeerId, protocol_ids: tuple[str, ...]) -> Stream:
        from libp2p.host.exceptions import StreamFailure
        from libp2p.protocol_muxer.exceptions import MultiselectClientError

        try:
            net = await self._library.new_stream(_library_id(peer_id), list(protocol_ids))
        except StreamFailure as error:
            if _is_unsupported(error.__cause__, MultiselectClientError):
                offered = ", ".join(protocol_ids)
                raise NotFound(f"peer {peer_id} offers none of {offered}") from error
            raise
        stream = Stream(self._bridge, net, peer_id, str(net.get_protocol()))
        self._bridge.spawn(stream.pump)
        return stream

    def _note_peers(self) -> None:
        connections: Mapping[Any, Any] = self._library.get_network().connections
        peers = frozenset(PeerId(str(peer)) for peer, live in connections.items() if live)

        def note() -> None:
            self._connected = peers

        self._bridge.to_loop(note)
        self.dht.note_peers()


class _Notifee:
    """Tells about connections; the other events are of no interest here."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    async def connected(self, network: object, conn: object) -> None:
        """A connection is up."""
        del network, conn
        self._changed()

    async def disconnected(self, network: object, conn: object) -> None:
        """A connection is gone."""
        del network, conn
        self._changed()

    async def opened_stream(self, network: object, stream: object) -> None:
        """Not used."""

    async def closed_stream(self, network: object, stream: object) -> None:
        """Not used."""

    async def listen(self, network: object, multiaddr: object) -> None:
        """Not used."""

    async def listen_close(self, network: object, multiaddr: object) -> None:
        """Not used."""


def _new_library_host(settings: NetworkSettings, identity: Identity) -> Any:  # noqa: ANN401 - untyped library
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.network.config import ConnectionConfig
    from libp2p.rcmgr.connection_limits import new_connection_limits_with_defaults
    from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
    from libp2p.security.noise.transport import Transport as NoiseTransport

    # It logs errors for ordinary events, and its import sets the level; what matters is raised
    # or counted here.
    for name in ("libp2p", "libp2p.network.auto_connector"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    key_pair = create_new_key_pair(identity.seed)
    noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
    connections = settings.max_connections
    limits = new_connection_limits_with_defaults()
    announce = [_multiaddr(address) for address in settings.announce]
    return new_host(
        key_pair=key_pair,
        # The library's own list also offers secio and plaintext.
        sec_opt={NOISE_ID: noise},
        muxer_preference="YAMUX",
        negotiate_timeout=NEGOTIATE_SECONDS,
        # min_connections = 0: the library keeps that many slots back from inbound peers.
        connection_config=ConnectionConfig(
            max_connections=connections,
            min_connections=0,
            low_watermark=min(16, connections),
            high_watermark=max(1, connections * 4 // 5),
            max_connections_per_peer=2,
            inbound_upgrade_timeout=5.0,
            dial_timeout=10.0,
            deny_list=list(settings.deny),
        ),
        resource_manager=ResourceManager(
            limits=ResourceLimits(max_connections=connections, max_streams=INBOUND_STREAMS),
            connection_limits=limits.with_max_established_per_peer(CONNECTIONS_PER_PEER),
            cidr_limits=[("0.0.0.0/0", max(1, connections * 9 // 10))],
        ),
        announce_addrs=announce or None,
        addrs_factory=None if announce else _without_wildcards,
        disable_identify_address_discovery=bool(announce),
    )


def _without_wildcards(addresses: list[Any]) -> list[Any]:
    """Interfaces in place of 0.0.0.0, which a peer would dial as itself."""
    from libp2p.utils.address_validation import expand_wildcard_address

    expanded: dict[str, Any] = {}
    for address in addresses:
        for concrete in expand_wildcard_address(address):
            expanded.setdefault(str(concrete), concrete)
    return list(expanded.values())


def _multiaddr(address: str) -> Any:  # noqa: ANN401 - untyped library
    from multiaddr import Multiaddr
    from multiaddr.exceptions import Error as MultiaddrFailure

    try:
        return Multiaddr(address)
    except (MultiaddrFailure, ValueError, LookupError) as error:
        raise InvalidRequest(f"{address[:200]!r} is not a multiaddr") from error


def _library_id(peer_id: PeerId) -> Any:  # noqa: ANN401 - untyped library
    from libp2p.peer.id import ID

    try:
        return ID.from_base58(peer_id)
    except ValueError as error:
        raise InvalidRequest(f"{peer_id[:100]!r} is not a peer id") from error


def _is_unsupported(cause: BaseException | None, client_error: type[BaseException]) -> bool:
    """Whether the peer answered that it knows none of the protocols (nothing else failed)."""
    return isinstance(cause, client_error) and "not supported" in str(cause)


def _refuse_taken_port(address: str) -> None:
    """Bind once without SO_REUSEPORT, which py-libp2p sets: two listeners would share the port."""
    parts = address.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        raise InvalidRequest(f"listen address {address[:200]!r} is not /ip4/<ip>/tcp/<port>")
    if not parts[4].isdigit() or int(parts[4]) > 65535:
        raise InvalidRequest(f"listen address {address[:200]!r}: port must be 0 to 65535")
    family = socket.AF_INET if parts[1] == "ip4" else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[2], int(parts[4])))
        except OSError as error:
            raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error
