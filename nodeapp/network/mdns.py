"""Hosts on the same link, by mDNS: what is told there is a candidate and nothing more.

As libp2p's specification (discovery/mdns) has it, under a service name of our own: an instance
with a name that says nothing, and a TXT entry `dnsaddr=<multiaddr>/p2p/<peer id>` for each
address. Anybody on the link can tell anything, so only addresses on the link are taken. This is
the only file importing zeroconf and ifaddr; py-libp2p 0.8.1's own module waits in threads, asks
for a route to a public address and takes whatever it hears.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import ifaddr
import structlog
from zeroconf import Error as ZeroconfFailure
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.wire.addresses import MAX_ADDRESS_CHARACTERS, tcp_endpoint

SERVICE: Final = "_fabstir-p2p._udp.local."
MAX_PEERS: Final = 64
"""Remembered at a time; later ones are not taken."""
MAX_ADDRESSES: Final = 4
"""Of one peer."""
ASK_MILLISECONDS: Final = 2000
NAME_CHARACTERS: Final = 32
KEY: Final = b"dnsaddr="

Network = ipaddress.IPv4Network
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Link:
    """The interfaces that are spoken on: our addresses and their networks."""

    addresses: tuple[str, ...]
    networks: tuple[Network, ...]

    def has(self, address: str) -> bool:
        """Whether a TCP multiaddr is one of this link."""
        endpoint = tcp_endpoint(address)
        if endpoint is None or len(address) > MAX_ADDRESS_CHARACTERS:
            return False
        with suppress(ValueError):
            return any(ipaddress.IPv4Address(endpoint[0]) in network for network in self.networks)
        return False

    def expand(self, listening: Sequence[str]) -> tuple[str, ...]:
        """Listening multiaddrs with our addresses in place of 0.0.0.0; those of other links go."""
        bare = (address.partition("/p2p/")[0] for address in listening)
        found = [
            whole
            for address in bare
            for own in self.addresses
            if self.has(whole := address.replace("/ip4/0.0.0.0/", f"/ip4/{own}/"))
        ]
        return tuple(dict.fromkeys(found))


def find_link(interfaces: Sequence[str] = ()) -> Link:
    """The IPv4 interfaces with these addresses; empty: all but loopback.

    Raises:
        Unavailable: there is none.
    """
    found = [
        ipaddress.IPv4Interface(f"{ip.ip}/{ip.network_prefix}")
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if isinstance(ip.ip, str)
    ]
    used = [one for one in found if (str(one.ip) in interfaces if interfaces else _is_lan(one))]
    if not used:
        raise Unavailable("no network interface for mDNS")
    return Link(tuple(str(one.ip) for one in used), tuple(one.network for one in used))


class LanPeers:
    """Who was heard on the link; grows and shrinks as they come and go."""

    def __init__(self, link: Link, own_name: str) -> None:
        """Use `listening`."""
        self._link = link
        self._own_name = own_name
        self._by_name: dict[str, tuple[PeerId, tuple[str, ...]]] = {}
        self._changed = asyncio.Event()
        self._names: asyncio.Queue[str] = asyncio.Queue(MAX_PEERS)

    def peers(self) -> dict[PeerId, tuple[str, ...]]:
        """Addresses by peer, all of them on the link."""
        return dict(self._by_name.values())

    async def each(self, seconds: float) -> AsyncIterator[tuple[PeerId, tuple[str, ...]]]:
        """Those known, and who is heard within so many seconds."""
        told: set[PeerId] = set()
        end = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._changed
            for peer_id, addresses in self.peers().items():
                if peer_id not in told:
                    told.add(peer_id)
                    yield peer_id, addresses
            try:
                async with asyncio.timeout_at(end):
                    await changed.wait()
            except TimeoutError:
                return

    def note(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """What the browser calls, on the loop; names are asked one by one."""
        del zeroconf, service_type
        if name == self._own_name:
            return
        if state_change is ServiceStateChange.Removed:
            self._by_name.pop(name, None)
        elif not self._names.full():
            self._names.put_nowait(name)

    async def ask(self, zeroconf: Zeroconf) -> None:
        """Ask for the addresses behind the names; never returns."""
        while True:
            name = await self._names.get()
            try:
                info = AsyncServiceInfo(SERVICE, name)
                await info.async_request(zeroconf, ASK_MILLISECONDS)
            except ZeroconfFailure as error:  # anybody may give itself a name that is none
                _log.info("bad name on the local network", error=str(error)[:200])
                continue
            self._take(name, info.text or b"")

    def _take(self, name: str, text: bytes) -> None:
        found = read_text(text)
        addresses = tuple(a for a in found if self._link.has(a))[:MAX_ADDRESSES]
        if not addresses or (name not in self._by_name and len(self._by_name) >= MAX_PEERS):
            return
        peer_id = PeerId(addresses[0].rpartition("/p2p/")[2])
        of_peer = tuple(a for a in addresses if a.endswith(f"/p2p/{peer_id}"))
        self._by_name[name] = (peer_id, of_peer)
        _log.info("peer on the local network", peer_id=peer_id, addresses=of_peer)
        self._changed.set()
        self._changed = asyncio.Event()


@asynccontextmanager
async def listening(interfaces: Sequence[str] = ()) -> AsyncIterator[LanPeers]:
    """Listen for hosts on the link.

    Raises:
        Unavailable: no interface, or multicast is refused.
    """
    async with _speaking(find_link(interfaces)) as (link, zeroconf):
        heard = LanPeers(link, "")
        async with _browsing(zeroconf, heard):
            yield heard


@asynccontextmanager
async def announcing(
    peer_id: PeerId, listens_at: Sequence[str], interfaces: Sequence[str] = ()
) -> AsyncIterator[tuple[str, ...]]:
    """Tell the link of this host while the block runs; gives what is told.

    Args:
        peer_id: of this host.
        listens_at: multiaddrs; 0.0.0.0 stands for every interface.
        interfaces: our IPv4 addresses to speak on; empty: all but loopback.
    Raises:
        Unavailable: no interface, multicast is refused, or the host listens on none of the link.
    """
    async with _speaking(find_link(interfaces)) as (link, zeroconf):
        told = tuple(f"{address}/p2p/{peer_id}" for address in link.expand(listens_at))
        if not told:
            raise Unavailable(
                f"mDNS: this host listens at {', '.join(listens_at)} only, not on the local network"
            )
        name = "".join(secrets.choice(string.ascii_lowercase) for _ in range(NAME_CHARACTERS))
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=(tcp_endpoint(told[0]) or ("", 0))[1],
            properties=write_text(told[:MAX_ADDRESSES]),
            server=f"{name}.local.",
            parsed_addresses=list(link.addresses),
        )
        await (await zeroconf.async_register_service(info))
        try:
            yield told
        finally:
            await (await zeroconf.async_unregister_service(info))


def write_text(addresses: Sequence[str]) -> bytes:
    """TXT record: strings of at most 255 bytes, each after its length (RFC 6763, section 6.1)."""
    entries = (KEY + address.encode() for address in addresses)
    return b"".join(bytes([len(entry)]) + entry for entry in entries if len(entry) <= 255)


def read_text(text: bytes) -> tuple[str, ...]:
    """Its addresses that end in a peer id; whatever else is in it is passed over."""
    found: list[str] = []
    while text and len(found) < 4 * MAX_ADDRESSES:
        entry, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        if entry.startswith(KEY) and entry.isascii():
            address = entry[len(KEY) :].decode()
            if address.rpartition("/p2p/")[2].isalnum() and "/p2p/" in address:
                found.append(address)
    return tuple(found)


def _is_lan(interface: ipaddress.IPv4Interface) -> bool:
    return not interface.ip.is_loopback and interface.network.prefixlen < 32


@asynccontextmanager
async def _speaking(link: Link) -> AsyncIterator[tuple[Link, AsyncZeroconf]]:
    try:
        zeroconf = AsyncZeroconf(interfaces=list(link.addresses), ip_version=IPVersion.V4Only)
    except OSError as error:
        raise Unavailable(f"mDNS on {', '.join(link.addresses)}: {error.strerror}") from error
    try:
        yield link, zeroconf
    finally:
        await zeroconf.async_close()


@asynccontextmanager
async def _browsing(zeroconf: AsyncZeroconf, heard: LanPeers) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(heard.ask(zeroconf.zeroconf))
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[heard.note])
        try:
            yield
        finally:
            await browser.async_cancel()
            asking.cancel()
