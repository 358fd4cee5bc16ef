"""Secrets sealed under a recovery password: scrypt, then ChaCha20-Poly1305.

Rules of this file: plain bytes never touch a disk here; a wrong password and an altered envelope
look the same, on purpose.

Layout: MAGIC, salt (16 bytes), nonce (12 bytes), ciphertext of a msgpack map name -> bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from nodeapp.core.errors import Corrupt, InvalidRequest, Unauthorised

MAGIC = b"fabstir-keys-1\n"
SALT_BYTES = 16
NONCE_BYTES = 12
LEAST_PASSWORD_BYTES = 12
MAX_ENVELOPE_BYTES = 1 << 20
_SCRYPT_N = 1 << 15
"""32 MiB and about 0.1 s a guess."""


def seal(named: Mapping[str, bytes], password: bytes) -> bytes:
    """One envelope with all of them.

    Raises:
        InvalidRequest: the password is shorter than LEAST_PASSWORD_BYTES.
    """
    if len(password) < LEAST_PASSWORD_BYTES:
        raise InvalidRequest(
            f"the recovery password has {len(password)} bytes, at least {LEAST_PASSWORD_BYTES}"
        )
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    plain = msgspec.msgpack.encode(dict(named))
    sealed = ChaCha20Poly1305(_key(password, salt)).encrypt(nonce, plain, MAGIC)
    return MAGIC + salt + nonce + sealed


def unseal(envelope: bytes, password: bytes) -> dict[str, bytes]:
    """What was sealed.

    Raises:
        Corrupt: not an envelope of ours.
        Unauthorised: another password, or the envelope was altered.
    """
    if not envelope.startswith(MAGIC) or len(envelope) > MAX_ENVELOPE_BYTES:
        raise Corrupt("the sealed keys are not in the form of this program")
    body = envelope[len(MAGIC) :]
    salt, nonce = body[:SALT_BYTES], body[SALT_BYTES : SALT_BYTES + NONCE_BYTES]
    try:
        plain = ChaCha20Poly1305(_key(password, salt)).decrypt(
            nonce, body[SALT_BYTES + NONCE_BYTES :], MAGIC
        )
        return msgspec.msgpack.decode(plain, type=dict[str, bytes])
    except (InvalidTag, ValueError) as error:
        raise Unauthorised(
            "the recovery password does not open the sealed keys, or they were altered"
        ) from error


def _key(password: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(password)
