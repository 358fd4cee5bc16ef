"""Peer ids of Ed25519 hosts: base58btc of the identity multihash of the public key. Pure.

Such an id holds the whole key, so what a peer signed can be checked without meeting it.
"""

from __future__ import annotations

from typing import Final

import base58

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import PeerId

PUBLIC_KEY_BYTES: Final = 32
_PREFIX: Final = bytes.fromhex("0024080112" + "20")
"""Identity multihash of 36 bytes: protobuf of type = Ed25519 and 32 bytes. Source: libp2p."""
_LONGEST_TEXT: Final = 64


def peer_id_of(public_key: bytes) -> PeerId:
    """The id ("12D3Koo…") of a raw Ed25519 key of 32 bytes."""
    return PeerId(base58.b58encode(_PREFIX + public_key).decode())


def public_key_of(peer_id: str) -> bytes:
    """The raw Ed25519 key, 32 bytes.

    Raises:
        InvalidRequest: not the id of an Ed25519 host.
    """
    try:
        raw = base58.b58decode(peer_id) if len(peer_id) <= _LONGEST_TEXT else b""
    except ValueError as error:
        raise InvalidRequest(f"peer id {peer_id[:80]!r} is not base58") from error
    if len(raw) != len(_PREFIX) + PUBLIC_KEY_BYTES or not raw.startswith(_PREFIX):
        raise InvalidRequest(f"peer id {peer_id[:80]!r} is not of an ed25519 host")
    return raw[len(_PREFIX) :]
