"""The Ed25519 identity of a libp2p host: its key file, peer id and lock. Does not import libp2p.

The key file holds libp2p's own form of a private key (protobuf of type and bytes), so other
libp2p programs can read it. It is not a wallet key: it holds no money.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.wire.peer_id import peer_id_of

_PRIVATE_KEY_PREFIX: Final = bytes.fromhex("08011240")
"""Protobuf: type = Ed25519 (1), then 64 bytes of seed and public key. Source: libp2p peer-ids."""
_FILE_BYTES: Final = len(_PRIVATE_KEY_PREFIX) + 64


@dataclass(frozen=True, slots=True)
class Identity:
    """An Ed25519 key pair; `seed` is secret and 32 bytes."""

    seed: bytes = field(repr=False)
    public_key: bytes

    @property
    def peer_id(self) -> PeerId:
        """Base58btc of the identity multihash of the public key ("12D3Koo…")."""
        return peer_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes; the caller separates what the key signs by a prefix."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)


def identity_from_seed(seed: bytes) -> Identity:
    """Build the pair from its 32-byte seed."""
    return Identity(
        seed, Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    )


def load_identity(path: Path) -> Identity:
    """Read the key file.

    Raises:
        Unavailable: no such file, or it cannot be read.
        Corrupt: wrong form, key halves that do not belong together, or readable by others.
    """
    try:
        # Provisioning reads it as well: a pipe that was put there must not keep the boot waiting.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            stored = file.read(_FILE_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise Unavailable(f"identity file {path}: {error.strerror}") from error
    mode = status.st_mode & 0o777
    if mode & 0o077:
        raise Corrupt(f"identity file {path} has mode {mode:04o}: chmod 600 it")
    if len(stored) != _FILE_BYTES or not stored.startswith(_PRIVATE_KEY_PREFIX):
        raise Corrupt(f"identity file {path} is not a libp2p ed25519 key: restore or remove it")
    identity = identity_from_seed(stored[4:36])
    if identity.public_key != stored[36:]:
        raise Corrupt(f"identity file {path}: public half does not match: restore or remove it")
    return identity


def load_or_create_identity(path: Path) -> Identity:
    """Read the key file, or write a new one; two processes racing agree on one key.

    Raises:
        Unavailable: the directory cannot be written.
        Corrupt: as `load_identity`.
    """
    if path.exists():
        return load_identity(path)
    identity = identity_from_seed(secrets.token_bytes(32))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, _PRIVATE_KEY_PREFIX + identity.seed + identity.public_key)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _publish(partial, path)
    except OSError as error:
        raise Unavailable(f"identity file {path}: {error.strerror}") from error
    return load_identity(path)


def _publish(partial: Path, path: Path) -> None:
    """Give the whole file its name unless another process was first (link is atomic)."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return
    finally:
        partial.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class IdentityLock:
    """Held while a host runs: one identity, one process.

    Two py-libp2p processes on one port both start (SO_REUSEPORT) and the kernel splits the
    connections between them, so the lock is what refuses the second.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, identity_path: Path) -> None:
        """Take the lock.

        Raises:
            Unavailable: another host holds it, or the file cannot be opened.
        """
        path = identity_path.with_name(identity_path.name + ".lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"identity lock {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise Unavailable(
                f"another process runs with identity {identity_path}: stop it first"
            ) from error

    def release(self) -> None:
        """Let the next host start; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
