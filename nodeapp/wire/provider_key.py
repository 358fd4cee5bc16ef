"""The DHT keys under which hosts announce themselves. Pure.

A provider record under such a key says only "peer X": nothing else in it may be trusted.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from nodeapp.core.ids import ModelId

_CID_V1: Final = 0x01
_RAW_CODEC: Final = 0x55
_SHA2_256: Final = 0x12


def provider_key(model_id: ModelId, chain_id: int) -> str:
    """Key of the hosts that offer one model on one chain.

    Args:
        model_id: 0x + 64 lower-case hex.
        chain_id: EIP-155 number; keeps a local chain's hosts out of a real network's answers.
    Returns:
        CIDv1, raw codec, sha2-256, multibase base32.
    """
    return _cid_of(f"fabstir/model/1/{chain_id}/{model_id}")


def any_host_key(chain_id: int) -> str:
    """Key of every host on one chain, for enumeration; form as `provider_key`."""
    return _cid_of(f"fabstir/host/1/{chain_id}")


def _cid_of(name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    binary = bytes((_CID_V1, _RAW_CODEC, _SHA2_256, len(digest))) + digest
    return "b" + base64.b32encode(binary).decode().lower().rstrip("=")
