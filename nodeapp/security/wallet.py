"""secp256k1 signatures over 32-byte digests, recoverable, in Ethereum's 65-byte form r|s|v."""

from __future__ import annotations

import coincurve
from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from nodeapp.core.errors import Unauthorised
from nodeapp.core.ids import Address

SIGNATURE_BYTES = 65
PUBLIC_KEY_BYTES = 33


def sign_digest(private_key: bytes, digest: bytes) -> bytes:
    """Sign a digest; v is 27 or 28."""
    signature = coincurve.PrivateKey(private_key).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes((signature[64] + 27,))


def recover_public_key(digest: bytes, signature: bytes) -> bytes:
    """The compressed key (33 bytes) that made this signature.

    Raises:
        Unauthorised: empty, truncated or impossible signature.
    """
    if len(signature) != SIGNATURE_BYTES or len(digest) != 32:
        raise Unauthorised(f"signature of {len(signature)} bytes, {SIGNATURE_BYTES} expected")
    v = signature[64] - 27 if signature[64] >= 27 else signature[64]
    if v not in (0, 1):
        raise Unauthorised(f"signature has recovery id {signature[64]}")
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes((v,)), digest, hasher=None
        )
    except ValueError as error:
        raise Unauthorised("signature does not recover to a key") from error
    return bytes(key.format(compressed=True))


def address_of(public_key: bytes) -> Address:
    """The account of a public key (33 or 65 bytes).

    Raises:
        Unauthorised: not a point of the curve.
    """
    try:
        point = coincurve.PublicKey(public_key).format(compressed=False)
    except ValueError as error:
        raise Unauthorised("public key is not a point of secp256k1") from error
    return Address(str(to_checksum_address(keccak(point[1:])[-20:])))


def public_key_of(private_key: bytes) -> bytes:
    """Compressed public key, 33 bytes."""
    return bytes(coincurve.PrivateKey(private_key).public_key.format(compressed=True))


def verify_digest(digest: bytes, signature: bytes, signer: Address) -> None:
    """Check who signed.

    Raises:
        Unauthorised: it was not `signer`.
    """
    found = address_of(recover_public_key(digest, signature))
    if found != signer:
        raise Unauthorised(f"signature is by {found}, expected {signer}")
