"""S5 content identifiers: a blob's BLAKE3 hash and size as text.

Blob identifier: `5b 82 | 1e | hash, 32 bytes | size, little endian without trailing zero bytes
(at least 1 byte)`; legacy raw form `26 | 1f | hash | size`. As text in multibase, unpadded:
f hex, b base32 (what we write; always starts "blob"), z base58btc, u base64url. Pure.
Source: S5 specification and Enhanced S5.js beta.45, byte for byte.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blake3 import blake3

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Cid

HASH_BYTES = 32
MAX_SIZE_BYTES = 8
MAX_TEXT = 96
"""Longest form: hex of 3 + 32 + 8 bytes and its prefix is 87."""
_BLOB = b"\x5b\x82\x1e"
_LEGACY = b"\x26\x1f"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class BlobId:
    """What a CID says."""

    hash: bytes
    size: int
    """Bytes; some portals' clients write 0 for "unknown"."""

    @property
    def hex(self) -> str:
        """The hash as 64 hex digits."""
        return self.hash.hex()


def blob_id_of(data: bytes) -> BlobId:
    """The identifier of these bytes."""
    return BlobId(blake3(data).digest(), len(data))


def cid_of(blob: BlobId) -> Cid:
    """The text we write: base32 blob identifier, 59 characters for most blobs."""
    return Cid(encode_multibase("b", _BLOB + blob.hash + _size_bytes(blob.size)))


def parse_cid(text: str) -> BlobId:
    """Read either form in any of the four bases.

    Raises:
        InvalidRequest: not a blob identifier.
    """
    if not 2 <= len(text) <= MAX_TEXT:
        raise InvalidRequest(f"cid has {len(text)} characters")
    data = decode_multibase(text)
    for prefix in (_BLOB, _LEGACY):
        rest = data.removeprefix(prefix)
        if len(rest) + len(prefix) == len(data):
            size = rest[HASH_BYTES:]
            if not 1 <= len(size) <= MAX_SIZE_BYTES or (len(size) > 1 and size[-1] == 0):
                break
            return BlobId(rest[:HASH_BYTES], int.from_bytes(size, "little"))
    raise InvalidRequest(f"cid {text} names no blob")


def encode_multibase(base: str, data: bytes) -> str:
    """Bytes as text; `base` is one of f, b, z, u.

    Raises:
        InvalidRequest: another base.
    """
    if base not in _BASES:
        raise InvalidRequest(f"multibase {base!r} is none of {', '.join(_BASES)}")
    return base + _BASES[base][0](data)


def decode_multibase(text: str) -> bytes:
    """Text as bytes.

    Raises:
        InvalidRequest: unknown base, or a character that is not of it.
    """
    base, body = text[:1], text[1:]
    if base not in _BASES:
        raise InvalidRequest(f"cid starts with {base!r}, need one of {', '.join(_BASES)}")
    encode, decode = _BASES[base]
    try:
        data = decode(body)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(f"cid is not multibase {base}") from error
    if encode(data) != body:
        raise InvalidRequest(f"cid is not canonical multibase {base}")
    return data


def _size_bytes(size: int) -> bytes:
    return size.to_bytes(MAX_SIZE_BYTES, "little").rstrip(b"\0") or b"\0"


def _encode32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _decode32(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))


def _encode64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _encode58(data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _decode58(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


_BASES: Mapping[str, tuple[Callable[[bytes], str], Callable[[str], bytes]]] = {
    "f": (bytes.hex, bytes.fromhex),
    "b": (_encode32, _decode32),
    "z": (_encode58, _decode58),
    "u": (_encode64, _decode64),
}
