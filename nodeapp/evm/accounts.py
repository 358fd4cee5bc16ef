"""Wallets: V3 keystores on disk, and the few things a key does.

The key is decrypted from a file with a password from a file, both mode 0600. It is never an
argument or an environment variable, and no repr shows it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_hash.auto import keccak
from eth_keys.datatypes import PrivateKey
from eth_typing import Hash32

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, Unauthorised
from nodeapp.core.ids import Address, TxHash

STANDARD_SCRYPT_N = 2**18
DEVNET_SCRYPT_N = 2**10
"""Quick, for keys that guard nothing."""
MAX_SCRYPT_BYTES = 1 << 30
"""Four times what STANDARD_SCRYPT_N takes."""
MAX_PBKDF2_ROUNDS = 10_000_000


class Wallet:
    """One secp256k1 key."""

    def __init__(self, account: LocalAccount) -> None:
        self._account = account
        self.address = Address(account.address)

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    @property
    def public_key(self) -> bytes:
        """Compressed point, 33 bytes."""
        return PrivateKey(bytes(self._account.key)).public_key.to_compressed_bytes()

    @property
    def private_key(self) -> bytes:
        """The key itself, 32 bytes; for opening boxes sealed to this wallet, never for storing."""
        return bytes(self._account.key)

    async def sign_transaction(self, fields: Mapping[str, object]) -> tuple[bytes, TxHash]:
        """Raw signed transaction and its hash."""
        signed = self._account.sign_transaction(dict(fields))  # type: ignore[arg-type]
        return bytes(signed.raw_transaction), TxHash("0x" + bytes(signed.hash).hex())

    async def sign_hashed(self, message: bytes) -> bytes:
        """Signature over the message's keccak256, r || s || v, 65 bytes."""
        return self.sign_digest(keccak(message))

    def sign_digest(self, digest: bytes) -> bytes:
        """Signature over 32 bytes that are a digest already (EIP-712), r || s || v, 65 bytes."""
        return bytes(self._account.unsafe_sign_hash(Hash32(digest)).signature)


def new_wallet() -> Wallet:
    """A fresh key that lives in memory only."""
    return Wallet(Account.create())


def create_keystore(
    path: Path, password_file: Path, *, scrypt_n: int = STANDARD_SCRYPT_N
) -> Wallet:
    """Make a key and write it as a V3 keystore, mode 0600; an existing file is never replaced.

    Args:
        path: the keystore to write.
        password_file: one line; must exist.
        scrypt_n: work factor, a power of two; DEVNET_SCRYPT_N where the key guards nothing.

    Raises:
        InvalidRequest: the keystore exists.
        NotFound: no password file.
    """
    password = _read_password(password_file)
    account: LocalAccount = Account.create()
    keystore = Account.encrypt(account.key, password, kdf="scrypt", iterations=scrypt_n)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InvalidRequest(f"keystore {path} exists already") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(keystore, file)
        file.flush()
        os.fsync(file.fileno())
    return Wallet(account)


def load_keystore(path: Path, password_file: Path) -> Wallet:
    """Open a V3 keystore.

    Raises:
        NotFound: keystore or password file missing.
        Rejected: a file is readable by everybody.
        InvalidRequest: not a V3 keystore.
        Unauthorised: wrong password.
    """
    password = _read_password(password_file)
    try:
        text = _read_private(path)
        keystore = json.loads(text)
        if not isinstance(keystore, dict) or "crypto" not in keystore:
            raise InvalidRequest(f"{path} is not a V3 keystore")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not a V3 keystore") from error
    try:
        _check_work(path, keystore["crypto"]["kdfparams"])
        key = Account.decrypt(keystore, password)
    except (AttributeError, KeyError, TypeError, NotImplementedError) as error:
        raise InvalidRequest(f"{path} is not a V3 keystore: {error!r}") from error
    except ValueError as error:
        raise Unauthorised(f"password file {password_file} does not open {path}") from error
    return Wallet(Account.from_key(key))


def _check_work(path: Path, parameters: Mapping[str, int]) -> None:
    """A keystore may come from a medium: opening it must not take the machine's memory."""
    scrypt_bytes = 128 * parameters.get("n", 1) * parameters.get("r", 1) * parameters.get("p", 1)
    if scrypt_bytes > MAX_SCRYPT_BYTES or parameters.get("c", 1) > MAX_PBKDF2_ROUNDS:
        raise InvalidRequest(
            f"{path} asks for more work than any wallet does (scrypt {scrypt_bytes >> 20} MiB, at"
            f" most {MAX_SCRYPT_BYTES >> 20}): write it anew with the usual work factor"
        )


def write_password(path: Path, password: str) -> None:
    """Write a new password file, mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InvalidRequest(f"password file {path} exists already") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(password + "\n")


def _read_password(path: Path) -> str:
    password = _read_private(path).rstrip("\r\n")
    if not password:
        raise InvalidRequest(f"password file {path} is empty")
    return password


def _read_private(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        # Group bits are allowed: systemd hands out credentials with an access list.
        if mode & stat.S_IRWXO:
            raise Rejected(f"{path} is open to everybody (mode {mode:o}): run chmod 600 {path}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8") from error
