"""What a libp2p host is started with, and the constants of the adapter."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from nodeapp.core.ids import PeerId

KAD_PROTOCOL_ID: Final = "/fabstir/kad/1.0.0"
"""Our own DHT: a node that meets an IPFS peer must not join the public one."""

PROCESS_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({"PY_YAMUX_RELEASE_ON_READ": "0"})
"""What whoever starts a libp2p process puts into its environment (program files, tests).

Without it py-libp2p 0.8.1 may send a window update after every read; everything works either way,
and since our reader takes many frames a read the difference in CPU is within the noise.
"""


class DhtMode(enum.Enum):
    """SERVER: dialable market nodes. CLIENT: renters and nodes behind NAT."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"


RecordRule = Callable[[str, bytes], int]
"""(key, value) -> sequence of a DHT value; of two values the higher one stays. Raises NodeError
for a value that must be neither kept nor believed. Called on the trio thread."""


Gate = Callable[[PeerId, str], bool]
"""(peer, IP address or "") -> whether its connections and streams are served. Trio thread."""


def everybody(_peer_id: PeerId, _address: str) -> bool:
    """The gate of a host that keeps nobody out."""
    return True


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """One libp2p host.

    Attributes:
        identity_path: Ed25519 key file, created with mode 0600 when missing; a lock file lies
            beside it.
        listen: multiaddrs, TCP only; port 0 takes a free one; empty: dial only.
        announce: multiaddrs told to others instead of the listening ones, public one first.
        dht_mode: see DhtMode.
        max_connections: inbound and outbound together.
        deny: CIDR blocks that may not connect.
        max_per_subnet: connections of one subnet (/24, /48) at a time; private ones are exempt.
        gate: who is served; see Gate.
        topics: gossip topics to join, each with what checks a message (raises NodeError).
        record_rules: DHT values taken, by the first part of their key; no others are.
        start_seconds: allowance for start, most of it the import of libp2p.
    """

    identity_path: Path
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    dht_mode: DhtMode = DhtMode.SERVER
    max_connections: int = 200
    deny: tuple[str, ...] = ()
    max_per_subnet: int = 32
    gate: Gate = everybody
    topics: Mapping[str, Callable[[bytes], object]] = field(default_factory=dict)
    record_rules: Mapping[str, RecordRule] = field(default_factory=dict)
    start_seconds: float = 300.0
