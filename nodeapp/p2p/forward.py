"""The router's forward to this host: asked for before the host starts, kept up, removed at the end.

What libp2p announces is fixed when it starts, so a router that has another address later, or
forwards only later, ends the process in order; the supervisor's next one announces it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.network.upnp import LEASE_SECONDS, Forward, PortForward, port_to_forward
from nodeapp.service.logs import get_logger
from nodeapp.service.settings import P2pSettings

RETRY_SECONDS: Final = 120.0
_log = get_logger(__name__)


class RouterForward:
    """`p2p.upnp`: a way in that nobody has to set up, and one sentence about it."""

    def __init__(
        self, settings: P2pSettings, fail: Callable[[str], None], *, interface: str = ""
    ) -> None:
        """Nothing is asked yet.

        Args:
            settings: whether, and for which port.
            fail: ends the process in order, with a reason.
            interface: see PortForward.
        """
        self._settings = settings
        self._fail = fail
        self._interface = interface
        self._port_forward: PortForward | None = None
        self._forward: Forward | None = None
        self.sentence = ""
        """For the operator; empty when it is switched off."""

    async def announced(self) -> tuple[str, ...]:
        """Ask the router, at most half a minute; what the host is to announce then."""
        if self._settings.upnp:
            try:
                port = port_to_forward((self._settings.listen,))
                self._port_forward = PortForward(port, interface=self._interface)
                await self._open(self._port_forward)
            except NodeError as error:
                self._note(error)
        if self._settings.announce or self._forward is None:
            return self._settings.announce
        return (self._forward.multiaddr,)

    async def keep(self) -> None:
        """Renew the lease at its half; ends when another address must be announced."""
        while self._port_forward is not None:
            await asyncio.sleep(RETRY_SECONDS if self._forward is None else LEASE_SECONDS / 2)
            if not await self._renew(self._port_forward):
                return

    async def close(self) -> None:
        """Leave nothing open in the router."""
        if self._port_forward is not None:
            try:
                await self._port_forward.close()
            except Unavailable as error:
                _log.warning("forward not removed", error=error.message)

    async def _renew(self, port_forward: PortForward) -> bool:
        announced = self._forward
        try:
            now = await self._open(port_forward)
        except Unavailable as error:
            self._note(error)
            return True
        if now == announced or self._settings.announce:
            return True
        self._fail(f"the router's way in is {now.multiaddr} now, to be announced by the next run")
        return False

    async def _open(self, port_forward: PortForward) -> Forward:
        self._forward = await port_forward.open()
        self.sentence = self._forward.sentence
        _log.info("router forwards", address=self._forward.multiaddr)
        return self._forward

    def _note(self, error: NodeError) -> None:
        self.sentence = error.message
        _log.warning("router does not forward", error=error.message)
