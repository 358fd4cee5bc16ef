"""What makes this machine this machine: machine id, ssh host key, sealing key, libp2p identity.

Made once, on the first boot, and kept beside the configuration; none of them needs a CONFIG.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from nodeapp.core.errors import Corrupt, NodeError, Unavailable
from nodeapp.network.identity import load_or_create_identity
from nodeapp.provision.places import Account, Places, acting_as
from nodeapp.security.wallet import public_key_of
from nodeapp.store.atomic import write_whole

HOST_KEY = "ssh/ssh_host_ed25519_key"
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Identities:
    """All of them; `sealing_key` is the private half."""

    machine_id: str
    ssh_fingerprint: str
    """As ssh shows it on the first connection."""
    sealing_key: bytes
    peer_id: str
    """"" with `trouble`: the node's own user could have damaged it, that must stop nothing here."""
    trouble: str = ""

    @property
    def sealing_public_key(self) -> str:
        """What secrets for this machine are sealed to, hex."""
        return public_key_of(self.sealing_key).hex()


def make_identities(places: Places, account: Account | None) -> Identities:
    """Read them, make what is missing.

    Raises:
        Unavailable: the disk is full or read-only.
        Corrupt: a key file was damaged.
    """
    try:
        peer_id, trouble = _peer_id(places, account)
        return Identities(
            machine_id=_machine_id(places),
            ssh_fingerprint=ssh_host_key(places.keys / HOST_KEY),
            sealing_key=_sealing_key(places.keys / "provision.key"),
            peer_id=peer_id,
            trouble=trouble,
        )
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}; is the state mounted?") from error


def _machine_id(places: Places) -> str:
    """The one of the first boot: the system began with it."""
    kept = places.keys / "machine-id"
    if kept.exists():
        text = kept.read_text("ascii", errors="replace").strip()
        if _MACHINE_ID.fullmatch(text):
            return text
    try:
        text = (places.etc / "machine-id").read_text("ascii", errors="replace").strip()
    except FileNotFoundError:
        text = ""
    if not _MACHINE_ID.fullmatch(text):
        text = secrets.token_hex(16)
    write_whole(kept, f"{text}\n".encode(), mode=0o444)
    return text


def ssh_host_key(path: Path) -> str:
    """Its fingerprint; made when it is missing. Raises: Corrupt, OSError."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write_whole(path.with_name(f"{path.name}.pub"), public + b"\n")
        # Last: while it is missing, both are made anew.
        write_whole(path, private, mode=0o600)
    try:
        blob = base64.b64decode(path.with_name(f"{path.name}.pub").read_bytes().split()[1])
    except (IndexError, ValueError) as error:
        raise Corrupt(f"{path}.pub is damaged: remove both halves, they are made anew") from error
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _sealing_key(path: Path) -> bytes:
    if not path.exists():
        write_whole(path, PrivateKey().secret.hex().encode() + b"\n", mode=0o600)
    try:
        return PrivateKey.from_hex(path.read_text("ascii").strip()).secret
    except ValueError as error:
        raise Corrupt(f"{path} is damaged: remove it, and seal the secrets anew") from error


def _hand_over(directory: Path, account: Account) -> None:
    """Give root's directory to the node's user, which may have put a link in its place."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return  # no btrfs here, or not root's
    except PermissionError:
        return  # handed over by an earlier boot; this unit may not look into it
    try:
        if os.fstat(descriptor).st_uid == 0:
            os.fchmod(descriptor, 0o700)
            os.fchown(descriptor, account.uid, account.gid)
    finally:
        os.close(descriptor)


def _peer_id(places: Places, account: Account | None) -> tuple[str, str]:
    """The id, or "" and why there is none."""
    try:
        places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account is not None:
            os.chown(places.state, account.uid, account.gid)
            _hand_over(places.snapshots, account)
        with acting_as(account):
            return load_or_create_identity(places.state / "p2p" / "identity.key").peer_id, ""
    except NodeError as error:
        return "", f"no peer id: {error.message}"
    except OSError as error:
        return "", f"no peer id: {error.filename}: {error.strerror}; is the state mounted?"
