"""Where py-libp2p's own objects are made and parsed; everything here runs on the trio thread.

The package is imported inside the functions: it takes seconds, and only a started host needs it.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import trio

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.core.peer_score import subnet_of
from nodeapp.network.identity import Identity
from nodeapp.network.settings import Gate, NetworkSettings
from nodeapp.network.writes import share_writes

NEGOTIATE_SECONDS: Final = 10
CONNECTIONS_PER_PEER: Final = 4
INBOUND_STREAMS: Final = 2000
"""Over all peers and protocols."""


class ConnectionNotifee:
    """Tells about connections and closes those that the gate or a full subnet does not let in."""

    def __init__(self, changed: Callable[[], None], gate: Gate, max_per_subnet: int) -> None:
        self._changed = changed
        self._gate = gate
        self._max_per_subnet = max_per_subnet

    async def connected(self, network: Any, conn: Any) -> None:  # noqa: ANN401 - untyped library
        """A connection is up."""
        address = remote_ip(conn.muxed_conn)
        if not self._gate(PeerId(str(conn.muxed_conn.peer_id)), address) or self._is_full(
            network, subnet_of(address)
        ):
            await conn.close()
        else:
            share_writes(conn.muxed_conn)
        self._changed()

    async def disconnected(self, network: object, conn: object) -> None:
        """A connection is gone."""
        del network, conn
        self._changed()

    def _is_full(self, network: Any, subnet: str) -> bool:  # noqa: ANN401 - untyped library
        if not subnet:
            return False
        open_ones = sum(
            subnet_of(remote_ip(conn.muxed_conn)) == subnet for conn in network.get_connections()
        )
        return open_ones > self._max_per_subnet

    async def opened_stream(self, network: object, stream: object) -> None:
        """Not used."""

    async def closed_stream(self, network: object, stream: object) -> None:
        """Not used."""

    async def listen(self, network: object, multiaddr: object) -> None:
        """Not used."""

    async def listen_close(self, network: object, multiaddr: object) -> None:
        """Not used."""


def limit_inbound(network: Any, max_per_subnet: int) -> None:  # noqa: ANN401 - untyped library
    """Give inbound places back, and count a subnet's connections from their first byte on.

    Two faults of 0.8.1: the place of an inbound connection is held until the host stops, so after
    `max_connections` of them in a lifetime nobody gets in; and a socket that says nothing holds a
    place for 5 s, so one address with idle sockets could hold all. Private networks are exempt.
    """
    held: Counter[str] = Counter()
    handle = network._do_handle_inbound_connection  # noqa: SLF001 - there is no public place for it

    async def limited(raw: Any, *more: Any) -> None:  # noqa: ANN401 - untyped library
        found = raw.get_remote_address()
        subnet = subnet_of(str(found[0])) if found else ""
        if subnet and held[subnet] >= max_per_subnet:
            await raw.close()
            return
        held[subnet] += 1
        scope, close = trio.CancelScope(), raw.close

        async def closing() -> None:
            try:
                await close()
            finally:
                scope.cancel()  # its handler waits for the end of the host otherwise

        raw.close = closing
        try:
            with scope:
                await handle(raw, *more)
        finally:
            held[subnet] -= 1
            if not held[subnet]:
                del held[subnet]

    network._do_handle_inbound_connection = limited  # noqa: SLF001


def spare_window_updates() -> None:
    """Tell a stream's sender of freed room at half a window, as yamux elsewhere does.

    0.8.1 sends an update after every read, however small: a frame to encrypt and a system call for
    each side per message, a tenth of all processor time of a network at rest.
    """
    from libp2p.stream_muxer.yamux.yamux import YamuxStream

    send = YamuxStream._auto_tune_and_send_window_update  # noqa: SLF001 - no public place for it
    if getattr(send, "is_spared", False):
        return

    async def at_half_window(self: Any, *, bytes_read: int = 0) -> None:  # noqa: ANN401 - untyped library
        del bytes_read  # what was read and not told yet is counted by the windows themselves
        await send(self)

    at_half_window.is_spared = True  # type: ignore[attr-defined]
    YamuxStream._auto_tune_and_send_window_update = at_half_window  # type: ignore[method-assign]  # noqa: SLF001 - as above


def look_up_no_names() -> None:
    """Let the library start where there is no name server; names are for resolve.py.

    0.8.1 reads /etc/resolv.conf at its import and for every host, and has none where it names no
    server.
    """
    import dns.asyncresolver
    from multiaddr.resolvers import DNSResolver

    def without_servers(self: Any) -> None:  # noqa: ANN401 - untyped library
        self._resolver = dns.asyncresolver.Resolver(configure=False)

    DNSResolver.__init__ = without_servers


def remote_ip(muxed: Any) -> str:  # noqa: ANN401 - a muxed stream or connection
    """Where the other end is, "" when the library does not tell."""
    found = muxed.get_remote_address()
    return str(found[0]) if found else ""


def new_library_host(settings: NetworkSettings, identity: Identity) -> Any:  # noqa: ANN401 - untyped library
    """A host as the settings say, not yet listening: TCP, noise and yamux only."""
    look_up_no_names()  # its import alone needs it
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.network.config import ConnectionConfig
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
    from libp2p.security.noise.transport import Transport as NoiseTransport

    # It logs errors for ordinary events, and its import sets the level; what matters is raised
    # or counted here.
    for name in ("libp2p", "libp2p.network.auto_connector"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    spare_window_updates()
    key_pair = create_new_key_pair(identity.seed)
    noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
    connections = settings.max_connections
    announce = [parse_multiaddr(address) for address in settings.announce]
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
            low_watermark=min(16, max(1, connections * 4 // 5)),
            high_watermark=max(1, connections * 4 // 5),
            max_connections_per_peer=2,
            inbound_upgrade_timeout=5.0,
            dial_timeout=10.0,
            deny_list=list(settings.deny),
        ),
        resource_manager=_resource_limits(connections),
        announce_addrs=announce or None,
        addrs_factory=None if announce else _without_wildcards,
        disable_identify_address_discovery=bool(announce),
    )


def _resource_limits(max_connections: int) -> Any:  # noqa: ANN401 - untyped library
    from libp2p.rcmgr.connection_limits import new_connection_limits_with_defaults
    from libp2p.rcmgr.manager import ResourceLimits, ResourceManager

    limits = new_connection_limits_with_defaults()
    return ResourceManager(
        limits=ResourceLimits(max_connections=max_connections, max_streams=INBOUND_STREAMS),
        connection_limits=limits.with_max_established_per_peer(CONNECTIONS_PER_PEER),
        cidr_limits=[("0.0.0.0/0", max(1, max_connections * 9 // 10))],
        # 0.8.1: opens for good at the fifth fault of a lifetime, and then refuses everybody.
        enable_circuit_breaker=False,
        # It lowers the limits above while somebody floods, for everybody.
        enable_graceful_degradation=False,
    )


def _without_wildcards(addresses: list[Any]) -> list[Any]:
    """Interfaces in place of 0.0.0.0, which a peer would dial as itself."""
    from libp2p.utils.address_validation import expand_wildcard_address

    expanded: dict[str, Any] = {}
    for address in addresses:
        for concrete in expand_wildcard_address(address):
            expanded.setdefault(str(concrete), concrete)
    return list(expanded.values())


def parse_multiaddr(address: str) -> Any:  # noqa: ANN401 - untyped library
    """Raises InvalidRequest when it is none."""
    from multiaddr import Multiaddr
    from multiaddr.exceptions import Error as MultiaddrFailure

    try:
        return Multiaddr(address)
    except (MultiaddrFailure, ValueError, LookupError) as error:
        raise InvalidRequest(f"{address[:200]!r} is not a multiaddr") from error


def parse_peer_id(peer_id: PeerId) -> Any:  # noqa: ANN401 - untyped library
    """Raises InvalidRequest when it is none."""
    from libp2p.peer.id import ID

    try:
        return ID.from_base58(peer_id)
    except ValueError as error:
        raise InvalidRequest(f"{peer_id[:100]!r} is not a peer id") from error


def is_unsupported(cause: BaseException | None, client_error: type[BaseException]) -> bool:
    """Whether the peer answered that it knows none of the protocols (nothing else failed)."""
    return isinstance(cause, client_error) and "not supported" in str(cause)


def refuse_taken_port(address: str) -> None:
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
