"""Which multiaddrs may be dialled when a stranger names them. Pure.

A record is no reason to knock at this machine's own services or at its local network.
"""

from __future__ import annotations

import ipaddress
from typing import Final

MAX_ADDRESS_CHARACTERS: Final = 256
RELAYED: Final = "p2p-circuit"


def is_public(address: str) -> bool:
    """Whether it is TCP at a literal, globally routed IP address.

    Names are not: what they resolve to is the stranger's to choose.
    """
    parts = address.split("/")
    if len(address) > MAX_ADDRESS_CHARACTERS or len(parts) < 5 or parts[0] != "":
        return False
    family, host, transport = parts[1:4]
    if family not in ("ip4", "ip6") or transport != "tcp":
        return False
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_global and not (mapped or found).is_multicast


def tcp_endpoint(address: str) -> tuple[str, int] | None:
    """(IP address, port) of a TCP multiaddr with a literal address, else None; so of a relay's."""
    parts = address.split("/")
    if RELAYED in parts or len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return None
    return (parts[2], int(parts[4])) if parts[4].isdigit() and int(parts[4]) <= 65535 else None


def dialable(addresses: tuple[str, ...], *, private: bool) -> tuple[str, ...]:
    """Those of a record that may be dialled; `private`: the network is a local one."""
    if private:
        return tuple(a for a in addresses if len(a) <= MAX_ADDRESS_CHARACTERS)
    return tuple(filter(is_public, addresses))
