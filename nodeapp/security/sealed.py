"""Sealed boxes: bytes that only the owner of one secp256k1 key can open.

    version 01 | ephemeral public key, 33 bytes | ciphertext

    secret     = ECDH(ephemeral, recipient): sha256 of the compressed shared point
    key, nonce = HKDF-SHA256(secret, ephemeral | recipient, "fabnode/sealed/1"), 32 and 24 bytes
    ciphertext = XChaCha20-Poly1305(key, nonce, length u32 LE | data | zeros, aad = head | context)

The ephemeral key is fresh for each box, so key and nonce are used once. The padding (S5's pad
blocks) hides the length: to 4 KiB up to 80 KiB, to 8 KiB up to 160 KiB, and so on doubling.
The sender is not authenticated: sign the box, or its hash, where that matters.
"""

from __future__ import annotations

from coincurve import PrivateKey, PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from nodeapp.core.errors import InvalidRequest, TooLarge

VERSION = 1
PUBLIC_KEY_BYTES = 33
HEAD_BYTES = 1 + PUBLIC_KEY_BYTES
TAG_BYTES = 16
LENGTH_BYTES = 4
MAX_BYTES = 64 << 20
_INFO = b"fabnode/sealed/1"
_KEY_BYTES, _NONCE_BYTES = 32, 24


def seal(
    data: bytes, recipient: bytes, *, context: bytes = b"", ephemeral: bytes | None = None
) -> bytes:
    """Seal `data` to a public key.

    Args:
        data: at most 64 MiB.
        recipient: secp256k1 public key, 33 or 65 bytes.
        context: what the box belongs to; opening needs the same bytes.
        ephemeral: private key for reproducible boxes in tests; None: a fresh one.

    Raises:
        TooLarge: over 64 MiB.
        InvalidRequest: `recipient` is no public key.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(f"{len(data)} bytes cannot be sealed, at most {MAX_BYTES}")
    public = _public_key(recipient).format()
    sender = PrivateKey(ephemeral)
    head = bytes((VERSION,)) + sender.public_key.format()
    key, nonce = _derive(sender.ecdh(public), head[1:], public)
    body = len(data).to_bytes(LENGTH_BYTES, "little") + data
    padded = body.ljust(padded_size(len(body)), b"\0")
    return head + crypto_aead_xchacha20poly1305_ietf_encrypt(padded, head + context, nonce, key)


def open_sealed(box: bytes, private_key: bytes, *, context: bytes = b"") -> bytes:
    """Open a box with the recipient's private key, 32 bytes.

    Raises:
        InvalidRequest: another version, another key or context, or an altered box.
    """
    if len(box) < HEAD_BYTES + TAG_BYTES + LENGTH_BYTES or len(box) > 3 * MAX_BYTES:
        raise InvalidRequest(f"sealed box of {len(box)} bytes")
    if box[0] != VERSION:
        raise InvalidRequest(f"sealed box has version {box[0]}, this is {VERSION}")
    head, ciphertext = box[:HEAD_BYTES], box[HEAD_BYTES:]
    recipient = PrivateKey(private_key)
    ephemeral = _public_key(head[1:]).format()
    key, nonce = _derive(recipient.ecdh(ephemeral), ephemeral, recipient.public_key.format())
    try:
        padded = crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, head + context, nonce, key)
    except CryptoError as error:
        raise InvalidRequest("sealed box was altered or is for another key") from error
    length = int.from_bytes(padded[:LENGTH_BYTES], "little")
    if length > len(padded) - LENGTH_BYTES:
        raise InvalidRequest("sealed box states a length beyond its end")
    return padded[LENGTH_BYTES : LENGTH_BYTES + length]


def padded_size(size: int) -> int:
    """The next pad block: steps of 4 KiB up to 80 KiB, of 8 KiB up to 160 KiB, and so on."""
    step = 4096
    while size > 20 * step:
        step *= 2
    return -(-size // step) * step


def _public_key(data: bytes) -> PublicKey:
    try:
        return PublicKey(data)
    except ValueError as error:
        raise InvalidRequest("not a secp256k1 public key") from error


def _derive(secret: bytes, ephemeral: bytes, recipient: bytes) -> tuple[bytes, bytes]:
    derived = HKDF(SHA256(), _KEY_BYTES + _NONCE_BYTES, ephemeral + recipient, _INFO).derive(secret)
    return derived[:_KEY_BYTES], derived[_KEY_BYTES:]
