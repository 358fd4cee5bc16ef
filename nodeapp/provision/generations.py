"""Configurations taken over: each a directory of its own, one of them `current`.

A generation appears whole (renamed when it is on the disk) and counts when the link is swapped:
after a power cut either the old one counts or the new one. Root owns them; the node may read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.core.errors import Unavailable
from nodeapp.provision.checked import Checked
from nodeapp.provision.machine import NETWORK_PREFIX
from nodeapp.provision.parts import AUTHORIZED_KEYS, MACHINE, NETWORK_SUFFIX, SECRETS
from nodeapp.provision.places import Account, Places
from nodeapp.store.atomic import swap_link, sync_directory, sync_file_system, write_whole

FORMAT = 1
"""Raised when the same CONFIG is to be taken over anew."""
MANIFEST = "manifest.json"
STAGE = ".stage"
NAME_CHARACTERS = 16
_ROOT_ONLY = (MACHINE, AUTHORIZED_KEYS, MANIFEST)


class Manifest(msgspec.Struct, frozen=True):
    """Of one generation. A release that was gone back to passes over what a newer one added."""

    digest: str = ""
    secrets: tuple[str, ...] = ()
    keep_secrets: bool = True
    hostname: str = ""
    networks: dict[str, str] = {}
    wallet: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """The generation that counts."""

    directory: Path
    manifest: Manifest
    damage: str = ""
    """Why the manifest could not be read; then it is what the other files tell."""

    def secrets(self) -> dict[str, bytes]:
        """Its secret files. Raises: Unavailable."""
        try:
            return {name: (self.directory / name).read_bytes() for name in self.manifest.secrets}
        except OSError as error:
            raise Unavailable(f"{self.directory} cannot be read: {error.strerror}") from error


def digest_of(files: Mapping[str, bytes]) -> str:
    """Of a CONFIG whose secrets are open and complete."""
    parts = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
    return hashlib.sha256(msgspec.json.encode((FORMAT, parts))).hexdigest()


def read_held(places: Places) -> Held | None:
    """None: nothing was taken over yet.

    A damaged manifest is no reason to give up what lies beside it: the wallet is nowhere else.
    """
    try:
        directory = places.current.resolve(strict=True)
    except OSError:
        return None
    path = directory / MANIFEST
    try:
        return Held(directory, msgspec.json.decode(path.read_bytes(), type=Manifest))
    except OSError as error:
        return Held(directory, _guessed(directory), f"{path} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # msgspec's own, and those of what it calls
        return Held(directory, _guessed(directory), f"{path} is damaged: {error}")


def _guessed(directory: Path) -> Manifest:
    """Without a digest: the next CONFIG is taken over anew, with the secrets that lie here."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.is_file())
        networks = {
            f"{NETWORK_PREFIX}{name}": (directory / name).read_text("utf-8")
            for name in names
            if name.endswith(NETWORK_SUFFIX)
        }
    except (OSError, UnicodeDecodeError):
        return Manifest()
    return Manifest(secrets=tuple(name for name in names if name in SECRETS), networks=networks)


def empty_stage(places: Places) -> Path:
    """Where a CONFIG is put together.

    Raises:
        Unavailable: the disk is full or read-only.
    """
    stage = places.config / STAGE
    try:
        places.config.mkdir(mode=0o750, parents=True, exist_ok=True)
        if stage.exists():
            shutil.rmtree(stage)
        stage.mkdir(mode=0o700)
    except OSError as error:
        raise Unavailable(f"{stage} cannot be made: {error.strerror}") from error
    return stage


def publish(
    places: Places, stage: Path, checked: Checked, digest: str, account: Account | None
) -> Held:
    """Make the stage the generation that counts; `prune` removes the ones before.

    Raises:
        Unavailable: the disk is full or read-only.
    """
    manifest = Manifest(
        digest=digest,
        secrets=tuple(sorted(checked.secrets)),
        keep_secrets=checked.machine.keep_secrets,
        hostname=checked.machine.hostname,
        networks=checked.networks,
        wallet=checked.wallet,
    )
    directory = places.config / digest[:NAME_CHARACTERS]
    if directory.name == _name_of_current(places):
        # It counts until the link is swapped, and holds what was wiped from CONFIG.
        directory = places.config / digest[NAME_CHARACTERS : 2 * NAME_CHARACTERS]
    try:
        write_whole(stage / MANIFEST, msgspec.json.encode(manifest), mode=0o600)
        _own(places, stage, account)
        sync_file_system(stage)
        if directory.exists():
            shutil.rmtree(directory)
        stage.rename(directory)
        sync_directory(places.config)
        swap_link(places.current, directory.name)
    except OSError as error:
        raise Unavailable(f"{places.config} cannot be written: {error.strerror}") from error
    return Held(directory, manifest)


def prune(places: Places, held: Held | None) -> None:
    """Remove stages and every other generation.

    Where `current` leads stays even when it cannot be read. Raises: Unavailable.
    """
    counts = held.directory.name if held else _name_of_current(places)
    try:
        for path in places.config.iterdir() if places.config.exists() else ():
            if path.name != counts and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
    except OSError as error:
        raise Unavailable(f"{places.config} cannot be tidied: {error.strerror}") from error


def _name_of_current(places: Places) -> str:
    """Empty before the first CONFIG was taken over."""
    return places.current.readlink().name if places.current.is_symlink() else ""


def _own(places: Places, stage: Path, account: Account | None) -> None:
    """The node's group may read what the node needs, and change nothing."""
    if account is None:
        return
    for directory in (
        places.keys,
        places.config,
        stage,
        *(p for p in stage.iterdir() if p.is_dir()),
    ):
        os.chown(directory, 0, account.gid)
        directory.chmod(0o750)
    for path in (one for one in stage.rglob("*") if one.is_file()):
        if path.name not in _ROOT_ONLY and not path.name.endswith(NETWORK_SUFFIX):
            os.chown(path, 0, account.gid)
            path.chmod(0o640)
