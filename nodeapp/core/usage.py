"""What "delivered" means: the renter's cumulative, signed count over a running hash of token ids.

hash_0 = sha256("fabnode/receipt/1" | chain id | marketplace | job id)
hash_n = sha256(hash_(n-1) | token id as u32 big endian)
A receipt for n tokens carries hash_n, so one signature commits to every token and its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from nodeapp.core.ids import Address, JobId

RECEIPT_DOMAIN = b"fabnode/receipt/1"


def initial_hash(chain_id: int, marketplace: Address, job_id: JobId) -> bytes:
    """The running hash before the first token, 32 bytes."""
    return hashlib.sha256(
        RECEIPT_DOMAIN
        + chain_id.to_bytes(32, "big")
        + bytes.fromhex(marketplace.removeprefix("0x"))
        + job_id.to_bytes(32, "big")
    ).digest()


def extend_hash(running: bytes, token_ids: Iterable[int]) -> bytes:
    """The running hash after these further tokens."""
    for token_id in token_ids:
        running = hashlib.sha256(running + token_id.to_bytes(4, "big")).digest()
    return running
