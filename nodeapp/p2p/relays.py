"""Being reachable through relays: reservations with those of `p2p.relays`, kept and renewed.

For hosts that nobody can dial. Whoever is reachable by itself reserves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nodeapp.core.errors import NodeError
from nodeapp.core.ids import PeerId
from nodeapp.network.host import Libp2pHost
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger

LOOK_SECONDS: Final = 15.0
_log = get_logger(__name__)


@dataclass(slots=True)
class Reservations:
    """State of the ways in; `look` now and then."""

    relays: tuple[str, ...]
    clock: Clock
    _renew_at: dict[PeerId, float] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """For the operator; empty without relays."""
        if not self.relays:
            return ""
        if not self._renew_at:
            return f"none of {len(self.relays)} relays takes this host"
        return f"reachable through {len(self._renew_at)} of {len(self.relays)} relays"

    async def look(self, host: Libp2pHost, *, is_needed: bool) -> None:
        """Reserve where the connection was lost or half the time is over; give up what fails."""
        for relay in self.relays:
            peer_id = PeerId(relay.rpartition("/p2p/")[2])
            if not is_needed:
                self._lose(host, peer_id)
            elif self._is_due(host, peer_id):
                await self._reserve(host, relay, peer_id)

    def _is_due(self, host: Libp2pHost, peer_id: PeerId) -> bool:
        renew_at = self._renew_at.get(peer_id, 0.0)
        is_connected = peer_id in host.connected_peers()
        return not is_connected or self.clock.unix_seconds() >= renew_at

    async def _reserve(self, host: Libp2pHost, relay: str, peer_id: PeerId) -> None:
        try:
            until = await host.reserve(relay)
        except NodeError as error:
            _log.warning("relay does not take this host", relay=peer_id, error=error.message)
            self._lose(host, peer_id)
            return
        now = self.clock.unix_seconds()
        if peer_id not in self._renew_at:
            _log.info("reachable through a relay", relay=peer_id)
        self._renew_at[peer_id] = now + (until - now) / 2

    def _lose(self, host: Libp2pHost, peer_id: PeerId) -> None:
        self._renew_at.pop(peer_id, None)
        host.give_up(peer_id)
