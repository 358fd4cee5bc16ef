"""The capability record: what a host offers, as CBOR that its wallet signs byte for byte.

The record is fetched from the peer itself over an authenticated connection, so `peer_id` is
checked against that connection and the wallet against the chain registry.
"""

from __future__ import annotations

import cbor2
import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, ModelId, PeerId
from nodeapp.core.units import PricePerToken
from nodeapp.wire.plain_cbor import decode_plain

RECORD_VERSION = 1
MAX_RECORD_BYTES = 8192
MAX_RECORD_ITEMS = 1024


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
        return msgspec.convert(plain, CapabilityRecord, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"capability record: {error}") from error
