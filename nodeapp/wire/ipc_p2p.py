"""What `p2p` tells of the network."""

from __future__ import annotations

from typing import Annotated

import msgspec

from nodeapp.wire.ipc import Message

BanName = Annotated[str, msgspec.Meta(min_length=3, max_length=160)]
"""peer:<id>, wallet:<address> or subnet:<CIDR>."""


class NetworkView(Message, frozen=True):
    """Answer of GET /v1/network."""

    peer_id: str
    addresses: tuple[str, ...]
    connected_peers: int
    announced_models: tuple[str, ...]
    conversations: int
    is_reachable: bool | None = None
    """Whether peers could dial back; None: nobody could be asked."""
    reachability: str = ""


class BanView(Message, frozen=True):
    """Somebody who is kept out; `until` is Unix seconds."""

    name: str
    reason: str
    until: int


class BanList(Message, frozen=True):
    """Answer of GET /v1/bans."""

    bans: tuple[BanView, ...]


class BanRequest(Message, frozen=True):
    """Keep somebody out."""

    name: BanName
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "by the operator"
    seconds: Annotated[float, msgspec.Meta(gt=0, le=365 * 86_400)] = 86_400.0


class LiftRequest(Message, frozen=True):
    """Let somebody in again."""

    name: BanName
