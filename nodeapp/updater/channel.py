"""What a release channel offers, by TUF: signed, fresh, consistent, bounded; imports tuf alone.

A repository is two directories under one address: `metadata/` (root, timestamp, snapshot,
targets) and `targets/`. A channel is the target `channels/<name>.json`; it names the version and,
for every kind of installation, the targets it consists of. Signatures, thresholds, expiry,
rollback, freeze, mixed metadata and endless answers are checked by tuf's own client.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import Updater
from urllib3.exceptions import HTTPError

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, TooLarge, Unavailable
from nodeapp.core.release import Artefact, Release, version_key

MAX_MANIFEST_BYTES = 1 << 20
MAX_ROOT_BYTES = 512_000
WARNING = dt.timedelta(days=30)
"""Before the channel ends for this node: its publisher must be asked."""

Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][A-Za-z0-9._/-]{0,199}$")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of channels/<name>.json."""

    version: Annotated[str, msgspec.Meta(max_length=64)]
    artefacts: Annotated[
        dict[str, Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)]],
        msgspec.Meta(max_length=16),
    ]
    """Kind of installation → names of targets; `venv` has one, `sysupdate` several."""
    least_from: Annotated[str, msgspec.Meta(max_length=64)] = ""
    notes: Annotated[str, msgspec.Meta(max_length=20_000)] = ""


class Channel:
    """One channel of one repository."""

    def __init__(self, url: str, name: str, trusted_root: Path, directory: Path) -> None:
        """Args: `trusted_root` is the root.json the operator trusts; `directory` is ours."""
        self._url = url.rstrip("/")
        self._name = name
        self._trusted_root = trusted_root
        self._directory = directory

    async def newest(self, kind: str) -> Release | None:
        """What is offered to this kind of installation; None: nothing.

        Raises:
            InvalidRequest: there is no trusted root, or the manifest is malformed.
            Rejected: the metadata is not signed, expired, older than seen before, or mixed.
            Unavailable: the repository does not answer.
        """
        return await asyncio.to_thread(self._newest, kind)

    def address(self, artefact: Artefact) -> str:
        """Where it is fetched: with consistent snapshots the hash is part of the name."""
        path = PurePosixPath(artefact.path)
        return f"{self._url}/targets/{path.with_name(f'{artefact.sha256}.{path.name}')}"

    def _newest(self, kind: str) -> Release | None:
        try:
            return self._ask(kind)
        except ExpiredMetadataError as error:
            raise Rejected(
                f"release metadata of {self._url} has expired ({error}): the repository is not "
                "maintained, or somebody holds back newer metadata"
            ) from error
        except RepositoryError as error:
            raise Rejected(f"release metadata of {self._url} is refused: {error}") from error
        except DownloadHTTPError as error:
            if error.status_code == 404:
                raise NotFound(f"{self._url} has no such release file: {error}") from error
            raise Unavailable(f"{self._url} does not answer: {error}") from error
        # tuf 7.0.1 lets a connection that breaks inside an answer through as it came.
        except (DownloadError, HTTPError) as error:
            raise Unavailable(f"{self._url} does not answer: {error}") from error
        except OSError as error:
            raise Unavailable(f"release metadata cannot be kept: {error}") from error

    def _ask(self, kind: str) -> Release | None:
        metadata, targets = self._directory / "metadata", self._directory / "targets"
        for directory in (metadata, targets):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        client = Updater(
            metadata_dir=str(metadata),
            metadata_base_url=f"{self._url}/metadata/",
            target_dir=str(targets),
            target_base_url=f"{self._url}/targets/",
            bootstrap=self._root(),
        )
        client.refresh()
        manifest = self._manifest(client, targets)
        names = manifest.artefacts.get(kind, ())
        if not names:
            return None
        artefacts = tuple(_artefact(name, _target(client, name)) for name in names)
        return Release(manifest.version, manifest.least_from, manifest.notes, artefacts)

    def _manifest(self, client: Updater, directory: Path) -> Manifest:
        name = f"channels/{self._name}.json"
        target = _target(client, name)
        if target.length > MAX_MANIFEST_BYTES:
            raise TooLarge(f"{name} has {target.length} bytes, limit {MAX_MANIFEST_BYTES}")
        path = Path(client.download_target(target, str(directory / f"{self._name}.json")))
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{name} is malformed: {error}") from error
        version_key(manifest.version)
        if manifest.least_from:
            version_key(manifest.least_from)
        return manifest

    def _root(self) -> bytes:
        try:
            with self._trusted_root.open("rb") as file:
                return file.read(MAX_ROOT_BYTES)
        except FileNotFoundError as error:
            raise InvalidRequest(
                f"{self._trusted_root} does not exist: updater.trusted_root_file must name the "
                "root.json that you got with the first release"
            ) from error


def expiry_warning(directory: Path, unix_seconds: float) -> str:
    """What of the channel expires soon, by what was read last; "" when nothing does.

    Args:
        directory: as Channel's.
        unix_seconds: now.
    """
    now = dt.datetime.fromtimestamp(unix_seconds, dt.UTC)
    for role in ("root", "targets"):
        try:
            body = (directory / "metadata" / f"{role}.json").read_bytes()
            held: Metadata[Any] = Metadata.from_bytes(body)
        except (OSError, RepositoryError):
            continue  # the next check reads it anew, or says why not
        if held.signed.expires - now < WARNING:
            does = "expires" if held.signed.expires > now else "has expired"
            return (
                f"the channel's {role} {does} on {held.signed.expires:%Y-%m-%d}: no release is "
                "accepted from then on, unless its publisher renews it"
            )
    return ""


def _target(client: Updater, name: str) -> TargetFile:
    found = client.get_targetinfo(name)
    if found is None:
        raise NotFound(f"{name} is not in the signed metadata; see updater.channel")
    return found


def _artefact(name: str, target: TargetFile) -> Artefact:
    sha256 = target.hashes.get("sha256", "")
    if len(sha256) != 64:
        raise Rejected(f"{name} has no sha256 in the signed metadata")
    return Artefact(name, target.length, sha256)
