"""What peers did wrong, as points that fade, and how long they are kept out. Pure.

Points are counted for the peer id and for its subnet: ids cost nothing, addresses do.
"""

from __future__ import annotations

import ipaddress
import math
from typing import Final

import msgspec

HALF_LIFE_SECONDS: Final = 600.0
BAN_POINTS: Final = 100.0
SUBNET_SHARE: Final = 0.25
"""Of a peer's points that count for its subnet: many honest ones may live there."""
FIRST_BAN_SECONDS: Final = 600.0
LONGEST_BAN_SECONDS: Final = 86_400.0
POINTS: Final = {
    "protocol_violation": 34.0,
    "unauthorised": 10.0,
    "invalid_request": 2.0,
}
"""By the code of the error the peer was told; three violations in a row are a ban."""


class Score(msgspec.Struct, frozen=True):
    """Points at a time, Unix seconds."""

    points: float = 0.0
    at: float = 0.0

    def now(self, unix_seconds: float) -> float:
        """Points left after fading."""
        age = max(0.0, unix_seconds - self.at)
        return self.points * math.pow(0.5, age / HALF_LIFE_SECONDS)

    def plus(self, points: float, unix_seconds: float) -> Score:
        """After another fault."""
        return Score(self.now(unix_seconds) + points, unix_seconds)


class Ban(msgspec.Struct, frozen=True):
    """Kept out until `until`, Unix seconds; `count` bans so far make the next one longer."""

    reason: str
    until: float
    count: int = 1

    def is_active(self, unix_seconds: float) -> bool:
        """Whether it holds now."""
        return unix_seconds < self.until

    def is_forgotten(self, unix_seconds: float) -> bool:
        """Whether it no longer makes the next one longer."""
        return unix_seconds > self.until + LONGEST_BAN_SECONDS


def next_ban(earlier: Ban | None, reason: str, unix_seconds: float) -> Ban:
    """Twice as long as the one before, a day at most."""
    count = 1 if earlier is None or earlier.is_forgotten(unix_seconds) else earlier.count + 1
    seconds = min(LONGEST_BAN_SECONDS, FIRST_BAN_SECONDS * 2 ** min(count - 1, 30))
    return Ban(reason, unix_seconds + seconds, count)


def subnet_of(address: str) -> str:
    """The /24 (IPv6: /48) of an address; "" for a private one, where everybody is a neighbour."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global:
        return ""
    prefix = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network(f"{ip}/{prefix}", strict=False))
