"""A TCP port of the router that leads to this host, by UPnP (IGD).

The only file importing miniupnpc, whose calls block: each runs in a thread. One that hangs is left
alone until it comes back, and nothing else is asked meanwhile. The forward has a lease that is
renewed at its half, so that a host that is gone leaves nothing open for long. What happened is one
sentence for the operator.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import miniupnpc

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.wire.addresses import tcp_endpoint

Result = TypeVar("Result")

LEASE_SECONDS: Final = 3600
SEARCH_MILLISECONDS: Final = 2000
CALL_SECONDS: Final = 30.0
OTHER_PORTS: Final = 4
"""Tried after the port itself, when another machine of the network has it."""
NAME: Final = "fabstir-node"
PERMANENT_ONLY: Final = ("OnlyPermanentLeasesSupported", "Invalid Args")
"""The library's texts for 725, and for what older routers say instead of it (402). For no other
refusal is a forward left open for ever."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What the router does for us."""

    address: str
    port: int

    @property
    def multiaddr(self) -> str:
        """To be announced."""
        return f"/ip4/{self.address}/tcp/{self.port}"

    @property
    def sentence(self) -> str:
        """For the operator."""
        return f"UPnP: the router forwards {self.address} port {self.port} to this machine"


class PortForward:
    """One port; `open`, now and then `open` again, at the end `close`."""

    def __init__(
        self, port: int, *, lease_seconds: int = LEASE_SECONDS, interface: str = ""
    ) -> None:
        """Nothing is asked yet.

        Args:
            port: TCP, where this host listens.
            lease_seconds: after which the router forgets it by itself.
            interface: IPv4 address to look for the router on; "": where the default route goes.
        """
        self._port = port
        self._lease_seconds = lease_seconds
        self._interface = interface
        self._call_seconds = CALL_SECONDS
        self._router = miniupnpc.UPnP()
        self._forward: Forward | None = None
        self._lock = asyncio.Lock()  # guards: the library's object is no thread's but one
        self._asked: asyncio.Future[Any] | None = None
        """The newest call; one that was given up has the library's object until it is done."""

    async def open(self) -> Forward:
        """Have the port forwarded, or its lease renewed.

        Raises:
            Unavailable: no router, or it does not; the message is for the operator.
        """
        async with self._lock:
            if self._forward is None:
                await self._call(self._find)
            try:
                self._forward = await self._call(self._ask)
            except Unavailable:
                self._forward = None  # it may be another router by now: look for it again
                raise
            return self._forward

    async def close(self) -> None:
        """Have it not forwarded any more.

        Raises:
            Unavailable: the router does not answer; its lease ends by itself.
        """
        async with self._lock:
            forward, self._forward = self._forward, None
            if forward is not None:
                await self._call(lambda: self._router.deleteportmapping(forward.port, "TCP"))

    async def _call(self, work: Callable[[], Result]) -> Result:
        if self._asked is not None and not self._asked.done():
            raise Unavailable("UPnP: the router has not answered an earlier question yet")
        # Not to_thread: given up, it would leave its thread behind with nobody to know of it.
        running = self._asked = asyncio.get_running_loop().run_in_executor(None, work)
        running.add_done_callback(_forget)
        try:
            async with asyncio.timeout(self._call_seconds):
                return await asyncio.shield(running)
        except TimeoutError as error:
            raise Unavailable("UPnP: the router does not answer") from error
        except Unavailable:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise Unavailable(f"UPnP: the router does not answer rightly ({error})") from error

    def _find(self) -> None:
        place = {"multicastif": self._interface} if self._interface else {}
        router = self._router = miniupnpc.UPnP(**place)
        router.discoverdelay = SEARCH_MILLISECONDS
        by_hand = f"forward TCP port {self._port} to this machine by hand"
        try:
            devices = router.discover()
        except Exception as error:  # 2.3.3 raises "Success" when nobody answered
            why = "" if str(error) == "Success" else f" ({error})"
            raise Unavailable(f"UPnP: no router answered{why}; {by_hand}") from error
        try:
            router.selectigd()
        except Exception as error:
            raise Unavailable(
                f"UPnP: {devices} devices answered and none is a router; {by_hand}"
            ) from error

    def _ask(self) -> Forward:
        address = str(self._router.externalipaddress() or "")
        if not _is_global(address):
            raise Unavailable(
                f"UPnP: the router's own address {address or 'is not known,'} is not public:"
                " another router or the provider's NAT is in front of it"
            )
        reason = ""
        for port in self._ports():
            refusal = self._add(port, self._lease_seconds)
            if refusal in PERMANENT_ONLY:
                refusal = self._add(port, 0)
            if not refusal:
                return Forward(address, port)
            reason = reason or refusal
        raise Unavailable(
            f"UPnP: the router refuses to forward TCP port {self._port} ({reason}):"
            " allow UPnP in the router, or forward it by hand"
        )

    def _add(self, port: int, lease_seconds: int) -> str:
        """Why the router does not; "" when it does."""
        router = self._router
        try:
            router.addportmapping(port, "TCP", router.lanaddr, self._port, NAME, "", lease_seconds)
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            return str(error) or type(error).__name__
        return ""

    def _ports(self) -> Sequence[int]:
        """Best first; the one there is stays."""
        if self._forward is not None:
            return (self._forward.port,)
        return range(self._port, min(self._port + 1 + OTHER_PORTS, 65536))


def _forget(asked: asyncio.Future[Any]) -> None:
    """Whoever asked may have given up; asyncio would complain of an error that nobody took."""
    if not asked.cancelled():
        asked.exception()


def port_to_forward(listen: Sequence[str]) -> int:
    """The port a router can lead to.

    Raises:
        InvalidRequest: none of the addresses is reachable from the router.
    """
    for address in listen:
        endpoint = tcp_endpoint(address)
        if endpoint is not None and endpoint[1] and not _is_loopback(endpoint[0]):
            return endpoint[1]
    raise InvalidRequest(
        f"UPnP: p2p.listen = {', '.join(listen)} cannot be reached from the router;"
        " /ip4/0.0.0.0/tcp/9000 can"
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
