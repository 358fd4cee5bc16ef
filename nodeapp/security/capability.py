"""Who signed a capability record: the checks that need no chain and no connection.

A record from the DHT, from gossip or from the peer itself passes the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError

from nodeapp.core.errors import InvalidRequest, Rejected, Unauthorised
from nodeapp.core.ids import PeerId
from nodeapp.security.wallet import address_of, verify_digest
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import (
    MAX_RECORD_BYTES,
    CapabilityRecord,
    decode_record,
    dht_key,
    peer_signed_bytes,
)
from nodeapp.wire.peer_id import public_key_of
from nodeapp.wire.signed import capability_digest, domain_separator

LONGEST_LIFE_SECONDS = 86_400
"""A record that would stay valid for longer is not spread by others."""
SIGNATURES_BYTES = 256
"""Room for both signatures and protobuf's own bytes."""


def check_capability(capability: pb.Capability, unix_seconds: float) -> CapabilityRecord:
    """The record, if wallet and peer signed these bytes and it has not expired.

    Raises:
        InvalidRequest: not a record.
        Unauthorised: a signature or the public key does not fit.
        Rejected: expired.
    """
    record = decode_record(capability.record)
    separator = domain_separator(record.chain_id, record.marketplace)
    digest = capability_digest(separator, capability.record)
    verify_digest(digest, capability.signature, record.wallet)
    if address_of(record.public_key) != record.wallet:
        raise Unauthorised("offer's public key is not the wallet's")
    _check_peer(record.peer_id, capability)
    if record.not_after < unix_seconds:
        raise Rejected(f"offer expired at {record.not_after}")
    return record


def decode_published(value: bytes) -> pb.Capability:
    """A capability as it is spread: the protobuf message alone.

    Raises:
        InvalidRequest: too long or not one.
    """
    if len(value) > MAX_RECORD_BYTES + SIGNATURES_BYTES:
        raise InvalidRequest(f"published offer has {len(value)} bytes")
    capability = pb.Capability()
    try:
        capability.ParseFromString(value)
    except DecodeError as error:
        raise InvalidRequest("published offer is not a capability message") from error
    return capability


def capability_rule(unix_seconds: Callable[[], float]) -> Callable[[str, bytes], int]:
    """The rule for DHT values: only the peer itself can publish under its key.

    Returns:
        (key, value) -> sequence; raises NodeError for anything but a valid record of that peer.
    """

    def rule(key: str, value: bytes) -> int:
        now = unix_seconds()
        record = check_capability(decode_published(value), now)
        if key != dht_key(record.peer_id):
            raise Unauthorised(f"offer of peer {record.peer_id} does not belong under {key[:100]}")
        if record.not_after > now + LONGEST_LIFE_SECONDS:
            raise Rejected(f"offer is valid until {record.not_after}, more than a day from now")
        return record.sequence

    return rule


def _check_peer(peer_id: PeerId, capability: pb.Capability) -> None:
    key = Ed25519PublicKey.from_public_bytes(public_key_of(peer_id))
    try:
        key.verify(capability.peer_signature, peer_signed_bytes(capability.record))
    except InvalidSignature as error:
        raise Unauthorised(f"offer is not signed by peer {peer_id}") from error
