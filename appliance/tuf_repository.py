"""A TUF repository on disk and the keys that sign it.

    KEYS/root.pem targets.pem      stay offline; sign who may sign, and what is a release
    KEYS/online.pem                signs snapshot and timestamp, every day
    REPOSITORY/metadata, targets   copy to any web server

The two directories are all there is. Rules of this file: what nodes would refuse is not written;
every file is replaced as a whole, timestamp last; an interrupted verb is given again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.channels import (
    NotPublished,
    Read,
    after_withdrawal,
    body_of,
    channels,
    kept_name,
    merged,
    offered,
    offered_name,
    releases,
    unused,
)
from nodeapp.core.release import version_key
from nodeapp.store.digest import sha256_of
from nodeapp.updater.channel import Manifest

KEY_OF = {"root": "root", "targets": "targets", "snapshot": "online", "timestamp": "online"}
LIFE = {
    "root": dt.timedelta(days=365),
    "targets": dt.timedelta(days=180),
    "snapshot": dt.timedelta(days=7),
    "timestamp": dt.timedelta(days=7),
}
RENEWED = ("root", "targets")
"""What `refresh` does not renew: their keys are offline."""
WARNING = dt.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository and the keys that sign it; every method may raise NotPublished, OSError."""

    directory: Path
    keys: Path

    @property
    def root_file(self) -> Path:
        """What new nodes get as `updater.trusted_root_file`: the newest root."""
        return self.directory / "trusted-root.json"

    def init(self) -> None:
        """Make the keys and the first metadata."""
        for name in ("metadata", "targets"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if any((self.directory / "metadata").iterdir()):
            raise NotPublished(f"{self.directory} is a repository already")
        self.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = Root(version=1, expires=_expiry("root"), consistent_snapshot=True)
        for key in sorted(set(KEY_OF.values())):
            self._make_key(key)
        for role, key in KEY_OF.items():
            root.add_key(self._signer(key).public_key, role)
        self._write_root(Metadata(root), [self._signer("root")], root)
        self._save(Metadata(Targets(version=1, expires=_expiry("targets"))), "targets")
        self._save(Metadata(_snapshot(1, 1)), "snapshot")
        self._save(Metadata(_timestamp(1, 1)), "timestamp")

    def add(
        self,
        channel: str,
        version: str,
        artefacts: Mapping[str, Sequence[Path]],
        *,
        notes: str = "",
        least_from: str = "",
    ) -> None:
        """Copy the files of a release, offer it on a channel, sign.

        Other kinds of the same version that the channel offers already stay.
        """
        names = {
            kind: tuple(f"{version}/{kind}/{path.name}" for path in files)
            for kind, files in artefacts.items()
        }
        for one in filter(None, (version, least_from)):
            version_key(one)
        with self._alone():
            targets = self._load("targets", Targets)
            before = offered(targets.signed, channel, self._reader(targets))
            new = Manifest(version, names, least_from, notes)
            now = merged(before, new)
            for kind, files in artefacts.items():
                for path, name in zip(files, names[kind], strict=True):
                    self._add_file(targets.signed, name, path)
            # The one before as well: it may be of a repository that kept none.
            for manifest in filter(None, (before, now)):
                if manifest.artefacts:
                    name = kept_name(channel, manifest.version)
                    self._add_target(targets.signed, name, body_of(manifest))
            self._add_target(targets.signed, offered_name(channel), body_of(now))
            self._save_targets(targets)
            self._refresh()

    def withdraw(self, channel: str, version: str) -> str:
        """Offer it no more, on one channel, and remove its files where no channel has it.

        Returns:
            What the channel offers now; "": nothing.
        """
        with self._alone():
            targets = self._load("targets", Targets)
            read = self._reader(targets)
            held = releases(targets.signed, channel, read)
            gone = held.pop(version, None)
            if gone is None:
                known = ", ".join(sorted(held)) or "none"
                raise NotPublished(f"{channel} has no release {version}; it has {known}")
            now = offered(targets.signed, channel, read)
            if now is None or now.version == version:
                now = after_withdrawal(held, version)
                self._add_target(targets.signed, offered_name(channel), body_of(now))
            names = [kept_name(channel, version)]
            targets.signed.targets.pop(names[0], None)
            left = [
                manifest
                for one in channels(targets.signed)
                for manifest in releases(targets.signed, one, read).values()
            ]
            removed = {
                name: targets.signed.targets.pop(name)
                for name in unused(targets.signed, left, gone)
            }
            self._save_targets(targets)
            self._refresh()
            for name, target in removed.items():
                self._place(name, target.hashes["sha256"]).unlink(missing_ok=True)
            return now.version if now.artefacts else ""

    def refresh(self) -> None:
        """New snapshot and timestamp for what is there; needs online.pem only."""
        with self._alone():
            self._refresh()

    def renew(self, roles: Sequence[str] = RENEWED) -> None:
        """New versions of root (by root.pem) and targets (by targets.pem, online.pem)."""
        with self._alone():
            if "root" in roles:
                self._save_root(self._load("root", Root), [self._signer("root")])
            if "targets" in roles:
                self._save_targets(self._load("targets", Targets))
                self._refresh()

    def rotate(self, key: str) -> Path | None:
        """Replace a key: a root that names the new one, then what it signs; needs root.pem.

        A lost or stolen `targets` or `online` is replaced without it. The new root of `root` is
        signed by the old key and the new one, so that nodes of any age follow.

        Returns:
            The key that was replaced, to be destroyed; None: it was not there.
        """
        with self._alone():
            root = self._load("root", Root)
            following = f"{key}.next"
            if not self._key_file(following).exists():
                self._make_key(following)
            new = self._signer(following)
            roles = [role for role, name in KEY_OF.items() if name == key]
            if any(new.public_key.keyid not in root.signed.roles[role].keyids for role in roles):
                for role in roles:
                    for keyid in tuple(root.signed.roles[role].keyids):
                        root.signed.revoke_key(keyid, role)
                    root.signed.add_key(new.public_key, role)
                self._save_root(root, [self._signer("root"), *([new] if key == "root" else [])])
            retired = self._retire(key, root.signed.version)
            if key == "targets":
                self._save_targets(self._load("targets", Targets))
            if key != "root":
                self._refresh()
            return retired

    def expiring(self, now: dt.datetime) -> list[str]:
        """What `refresh` cannot renew and will expire soon, with what to do."""
        found = []
        for role, kind in (("root", Root), ("targets", Targets)):
            expires = self._load(role, kind).signed.expires
            if expires - now < WARNING:
                does = "expires" if expires > now else "has expired"
                found.append(
                    f"the {role} {does} on {expires:%Y-%m-%d}, nodes refuse every release from "
                    f"then on: run `renew`, with {KEY_OF[role]}.pem"
                )
        return found

    def _refresh(self) -> None:
        targets = self._load("targets", Targets).signed.version
        snapshot = self._load("snapshot", Snapshot).signed.version + 1
        self._save(Metadata(_snapshot(snapshot, targets)), "snapshot")
        timestamp = self._load("timestamp", Timestamp).signed.version + 1
        self._save(Metadata(_timestamp(timestamp, snapshot)), "timestamp")

    def _reader(self, targets: Metadata[Any]) -> Read:
        def read(name: str) -> bytes:
            digest = targets.signed.targets[name].hashes["sha256"]
            return self._place(name, digest).read_bytes()

        return read

    def _add_target(self, targets: Targets, name: str, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest()
        _write_whole(self._place(name, digest), body)
        targets.targets[name] = TargetFile(len(body), {"sha256": digest}, name)

    def _add_file(self, targets: Targets, name: str, source: Path) -> None:
        digest = sha256_of(source)
        held = targets.targets.get(name)
        if held is not None and held.hashes.get("sha256") != digest:
            raise NotPublished(
                f"{name} is published with other contents: withdraw that release, or give the new "
                "files a new version"
            )
        shutil.copyfile(source, self._place(name, digest))
        targets.targets[name] = TargetFile(source.stat().st_size, {"sha256": digest}, name)

    def _place(self, name: str, digest: str) -> Path:
        path = self.directory / "targets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{digest}.{path.name}")

    def _load(self, role: str, kind: type[Any]) -> Metadata[Any]:
        directory = self.directory / "metadata"
        files = [directory / "timestamp.json"] if role == "timestamp" else []
        files = files or sorted(
            directory.glob(f"*.{role}.json"), key=lambda path: int(path.name.partition(".")[0])
        )
        if not files:
            raise NotPublished(f"{directory} has no {role} metadata: `init` makes a repository")
        loaded: Metadata[Any] = Metadata.from_file(str(files[-1]))
        if not isinstance(loaded.signed, kind):
            raise NotPublished(f"{files[-1]} is no {role} metadata")
        return loaded

    def _save_root(self, root: Metadata[Any], signers: Sequence[Signer]) -> None:
        before = self._load("root", Root).signed
        root.signed.version += 1
        root.signed.expires = _expiry("root")
        root.signatures.clear()
        self._write_root(root, signers, before)

    def _write_root(self, root: Metadata[Any], signers: Sequence[Signer], before: Root) -> None:
        for signer in signers:
            root.sign(signer, append=True)
        for trusted in (before, root.signed):
            trusted.verify_delegate("root", root.signed_bytes, root.signatures)
        body = root.to_bytes()
        _write_whole(self.directory / "metadata" / f"{root.signed.version}.root.json", body)
        _write_whole(self.root_file, body)

    def _save_targets(self, targets: Metadata[Any]) -> None:
        targets.signed.version += 1
        targets.signed.expires = _expiry("targets")
        self._save(targets, "targets")

    def _save(self, metadata: Metadata[Any], role: str) -> None:
        metadata.sign(self._signer(KEY_OF[role]))
        root = self._load("root", Root).signed
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        version = "" if role == "timestamp" else f"{metadata.signed.version}."
        _write_whole(self.directory / "metadata" / f"{version}{role}.json", metadata.to_bytes())

    def _key_file(self, name: str) -> Path:
        return self.keys / f"{name}.pem"

    def _make_key(self, name: str) -> None:
        path = self._key_file(name)
        if path.exists():
            raise NotPublished(f"{path} exists; a new repository needs a directory without keys")
        _write_whole(path, CryptoSigner.generate_ed25519().private_bytes)

    def _retire(self, key: str, version: int) -> Path | None:
        """`KEY.next` becomes `KEY`."""
        now, retired = self._key_file(key), self._key_file(f"{key}.before-{version}")
        is_there = now.exists()
        if is_there:
            now.replace(retired)
        self._key_file(f"{key}.next").replace(now)
        return retired if is_there else None

    def _signer(self, name: str) -> Signer:
        key: Any = load_pem_private_key(self._key_file(name).read_bytes(), password=None)
        return CryptoSigner(key)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The daily refresh and a person's verb would number their metadata alike."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _write_whole(path: Path, body: bytes) -> None:
    """A web server sees the file before or after; nobody else may read a key."""
    part = path.with_name(f".{path.name}.part")
    is_key = path.suffix == ".pem"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if is_key else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _expiry(role: str) -> dt.datetime:
    return (dt.datetime.now(dt.UTC) + LIFE[role]).replace(microsecond=0)


def _snapshot(version: int, targets: int) -> Signed:
    meta = {"targets.json": MetaFile(targets)}
    return Snapshot(version=version, expires=_expiry("snapshot"), meta=meta)


def _timestamp(version: int, snapshot: int) -> Signed:
    meta = MetaFile(snapshot)
    return Timestamp(version=version, expires=_expiry("timestamp"), snapshot_meta=meta)
