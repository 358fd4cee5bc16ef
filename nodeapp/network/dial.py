"""A connection to an address, straight or through a relay; everything here on the trio thread."""

from __future__ import annotations

from typing import Any

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import PeerId
from nodeapp.network import circuit
from nodeapp.network.library import parse_multiaddr, parse_peer_id


async def dial(library: Any, address: str) -> PeerId:  # noqa: ANN401 - untyped library
    """Dial exactly this address, or keep the connection there is.

    Raises:
        InvalidRequest: it does not end in /p2p/<peer id>, or is the host's own.
    """
    if circuit.MARK in address:
        return await _through_relay(library, address)
    from libp2p.peer.peerinfo import info_from_p2p_addr

    target = parse_multiaddr(address)
    try:
        peer = info_from_p2p_addr(target)
    except Exception as error:
        raise InvalidRequest(f"address {address[:200]} does not end in /p2p/<peer id>") from error
    _refuse_own(library, peer.peer_id)
    network = library.get_network()
    # 0.8.1 refuses a peer id for 60 s after a failed dial, even when it is back, and dials
    # one address per transport, the oldest first: a deliberate dial starts from scratch.
    network.unblock_peer(peer.peer_id)
    if peer.peer_id not in network.connections:
        library.get_peerstore().clear_addrs(peer.peer_id)
    await library.connect(peer)
    return PeerId(str(peer.peer_id))


async def _through_relay(library: Any, address: str) -> PeerId:  # noqa: ANN401 - untyped library
    relay_address, _, rest = address.partition(circuit.MARK)
    target = PeerId(rest.removeprefix("/p2p/"))
    target_id = parse_peer_id(target)
    _refuse_own(library, target_id)
    if target_id not in library.get_network().connections:
        relay = await dial(library, relay_address)
        await circuit.dial(library, parse_peer_id(relay), target_id)
    return target


def _refuse_own(library: Any, peer_id: object) -> None:  # noqa: ANN401 - untyped library
    if peer_id == library.get_id():
        raise InvalidRequest("that is this host's own address")
