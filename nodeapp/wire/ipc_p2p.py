"""What `p2p` tells of the network."""

from __future__ import annotations

from nodeapp.wire.ipc import Message


class NetworkView(Message, frozen=True):
    """Answer of GET /v1/network."""

    peer_id: str
    addresses: tuple[str, ...]
    connected_peers: int
    announced_models: tuple[str, ...]
    conversations: int
