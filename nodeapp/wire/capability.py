"""The capability record: what a host offers, as CBOR that its wallet signs byte for byte.

Signed twice: by the wallet, that it may sell, and by the libp2p key of `peer_id`, that it is this
peer; so a copy from the DHT or from gossip is as good as one from the peer itself. Whether the
wallet is a host at all is for the chain registry to say.
"""

from __future__ import annotations

import base64
import hashlib
import re

import cbor2
import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, ModelId, PeerId
from nodeapp.core.units import PricePerToken
from nodeapp.wire.plain_cbor import decode_plain

RECORD_VERSION = 1
MAX_RECORD_BYTES = 8192
MAX_RECORD_ITEMS = 1024
MAX_CHAIN_ID = 1 << 63
_ACCOUNT = re.compile("0x[0-9a-fA-F]{40}")
PEER_SIGNATURE_PREFIX = b"fabstir-capability-1:"
"""Keeps the libp2p key's signature from meaning anything else."""
DHT_NAMESPACE = "fabstir"
GOSSIP_TOPIC = "/fabstir/caps/1"
MAX_LISTED = 64
"""Offers in one answer."""
PROVEN = "ledger"
PROOF_MODES = {"required": PROVEN, "best_effort": "ledger or receipt", "off": "receipt"}
"""`proof_mode` by the host's policy: what each of its claims rests on."""


def dht_key(peer_id: PeerId) -> str:
    """Where the newest record of a peer lies in the DHT; py-libp2p takes at most 50 bytes."""
    digest = hashlib.sha256(f"fabstir/caps/1/{peer_id}".encode()).digest()[:20]
    return f"/{DHT_NAMESPACE}/{base64.b32encode(digest).decode().lower()}"


def peer_signed_bytes(record: bytes) -> bytes:
    """What the libp2p key signs for these exact record bytes."""
    return PEER_SIGNATURE_PREFIX + record


class ModelOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model at one price."""

    model_id: ModelId
    name: str
    sha256: str
    context_length: int
    quantisation: str
    asset: Address
    price_per_token: PricePerToken


class CapabilityRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed; `not_after` is Unix seconds, `sequence` rises with every change."""

    version: int
    chain_id: int
    marketplace: Address
    wallet: Address
    public_key: bytes
    peer_id: PeerId
    addresses: tuple[str, ...]
    portal_url: str
    models: tuple[ModelOffer, ...]
    free_slots: int
    proof_mode: str
    sequence: int
    not_after: int


def encode_record(record: CapabilityRecord) -> bytes:
    """Canonical CBOR of the record.

    Raises:
        InvalidRequest: longer than MAX_RECORD_BYTES.
    """
    encoded = bytes(
        cbor2.dumps(msgspec.to_builtins(record, builtin_types=(bytes,)), canonical=True)
    )
    if len(encoded) > MAX_RECORD_BYTES:
        raise InvalidRequest(
            f"capability record has {len(encoded)} bytes, {MAX_RECORD_BYTES} allowed"
        )
    return encoded


def decode_record(encoded: bytes) -> CapabilityRecord:
    """Parse a received record.

    Raises:
        InvalidRequest: too long, not CBOR, or not of this version's shape.
    """
    if len(encoded) > MAX_RECORD_BYTES:
        raise InvalidRequest(
            f"capability record has {len(encoded)} bytes, {MAX_RECORD_BYTES} allowed"
        )
    plain = decode_plain(encoded, "capability record", max_items=MAX_RECORD_ITEMS)
    try:
        record = msgspec.convert(plain, CapabilityRecord, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"capability record: {error}") from error
    # These are hashed before any signature is looked at.
    for account in (record.marketplace, record.wallet):
        if _ACCOUNT.fullmatch(account) is None:
            raise InvalidRequest(f"capability record: {account[:80]!r} is not an address")
    if not 0 < record.chain_id < MAX_CHAIN_ID:
        raise InvalidRequest(f"capability record: chain id {record.chain_id} is out of range")
    return record
