"""Publish releases: `python -m appliance.publish init|pack|add|refresh`, a TUF repository on disk.

    KEYS/root.pem targets.pem      stay offline; sign who may sign, and what is a release
    KEYS/online.pem                signs snapshot and timestamp, every day
    REPOSITORY/metadata, targets   copy to any web server

The two directories are all there is; run `refresh` by a timer, or nodes refuse after a week.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
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

ROOT = Path(__file__).resolve().parents[1]
KEY_OF = {"root": "root", "targets": "targets", "snapshot": "online", "timestamp": "online"}
LIFE = {
    "root": dt.timedelta(days=365),
    "targets": dt.timedelta(days=180),
    "snapshot": dt.timedelta(days=7),
    "timestamp": dt.timedelta(days=7),
}
PACKED = ("nodeapp", "appliance", "docs", "pyproject.toml", "README.md", "LICENSE")
LOCKS = ("requirements.lock", "requirements-dev.lock")


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository and the keys that sign it."""

    directory: Path
    keys: Path

    @property
    def root_file(self) -> Path:
        """What nodes get as `updater.trusted_root_file`."""
        return self.directory / "metadata" / "1.root.json"

    def init(self) -> None:
        """Make the keys and the first metadata."""
        for name in ("metadata", "targets"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = Root(version=1, expires=_expiry("root"), consistent_snapshot=True)
        for key in sorted(set(KEY_OF.values())):
            self._make_key(key)
        for role, key in KEY_OF.items():
            root.add_key(self._signer(key).public_key, role)
        self._save(Metadata(root), "root", "1.root.json")
        self._save(
            Metadata(Targets(version=1, expires=_expiry("targets"))), "targets", "1.targets.json"
        )
        self._save(Metadata(_snapshot(1, 1)), "snapshot", "1.snapshot.json")
        self._save(Metadata(_timestamp(1, 1)), "timestamp", "timestamp.json")

    def add(
        self,
        channel: str,
        version: str,
        artefacts: dict[str, Sequence[Path]],
        *,
        notes: str = "",
        least_from: str = "",
    ) -> None:
        """Copy the files of a release, offer it on a channel, sign."""
        targets = self._load("targets", Targets)
        names: dict[str, list[str]] = {}
        for kind, files in artefacts.items():
            names[kind] = [f"{version}/{kind}/{path.name}" for path in files]
            for path, name in zip(files, names[kind], strict=True):
                self._add_file(targets.signed, name, path)
        manifest = {
            "version": version,
            "artefacts": names,
            "least_from": least_from,
            "notes": notes,
        }
        body = json.dumps(manifest, sort_keys=True, indent=1).encode()
        self._add_target(targets.signed, f"channels/{channel}.json", body)
        targets.signed.version += 1
        targets.signed.expires = _expiry("targets")
        self._save(targets, "targets", f"{targets.signed.version}.targets.json")
        self.refresh()

    def refresh(self) -> None:
        """New snapshot and timestamp for what is there."""
        targets = self._load("targets", Targets).signed.version
        snapshot = self._load("snapshot", Snapshot).signed.version + 1
        self._save(Metadata(_snapshot(snapshot, targets)), "snapshot", f"{snapshot}.snapshot.json")
        timestamp = self._load("timestamp", Timestamp).signed.version + 1
        self._save(Metadata(_timestamp(timestamp, snapshot)), "timestamp", "timestamp.json")

    def _add_target(self, targets: Targets, name: str, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest()
        self._place(name, digest).write_bytes(body)
        targets.targets[name] = TargetFile(len(body), {"sha256": digest}, name)

    def _add_file(self, targets: Targets, name: str, source: Path) -> None:
        with source.open("rb") as file:  # an image has gigabytes
            digest = hashlib.file_digest(file, "sha256").hexdigest()
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
        loaded: Metadata[Any] = Metadata.from_file(str(files[-1]))
        if not isinstance(loaded.signed, kind):
            sys.exit(f"error: {files[-1]} is no {role} metadata")
        return loaded

    def _save(self, metadata: Metadata[Any], role: str, name: str) -> None:
        metadata.sign(self._signer(KEY_OF[role]))
        metadata.to_file(str(self.directory / "metadata" / name))

    def _make_key(self, name: str) -> None:
        path = self.keys / f"{name}.pem"
        if path.exists():
            sys.exit(f"error: {path} exists; a new repository needs a directory without keys")
        path.touch(mode=0o600)
        path.write_bytes(CryptoSigner.generate_ed25519().private_bytes)

    def _signer(self, name: str) -> Signer:
        key: Any = load_pem_private_key((self.keys / f"{name}.pem").read_bytes(), password=None)
        return CryptoSigner(key)


def _expiry(role: str) -> dt.datetime:
    return (dt.datetime.now(dt.UTC) + LIFE[role]).replace(microsecond=0)


def _snapshot(version: int, targets: int) -> Signed:
    meta = {"targets.json": MetaFile(targets)}
    return Snapshot(version=version, expires=_expiry("snapshot"), meta=meta)


def _timestamp(version: int, snapshot: int) -> Signed:
    meta = MetaFile(snapshot)
    return Timestamp(version=version, expires=_expiry("timestamp"), snapshot_meta=meta)


def pack(source: Path, out: Path) -> None:
    """The sources of a release as .tar.gz, the same bytes every time."""
    files = [source / name for name in (*PACKED, *LOCKS) if (source / name).is_file()]
    for name in PACKED:
        files += [path for path in (source / name).rglob("*") if path.is_file()]
    kept = [path for path in sorted(files) if "__pycache__" not in path.parts]
    with (
        out.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in kept:
            member = tar.gettarinfo(path, str(path.relative_to(source)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = 0
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            with path.open("rb") as file:
                tar.addfile(member, file)


def main() -> int:
    """One verb."""
    parser = argparse.ArgumentParser(prog="python -m appliance.publish", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("init", "add", "refresh"):
        one = verbs.add_parser(verb)
        one.add_argument("--repository", type=Path, required=True)
        one.add_argument("--keys", type=Path, required=True)
    added = verbs.choices["add"]
    added.add_argument("--channel", default="stable")
    added.add_argument("--version", required=True)
    added.add_argument("--notes", default="")
    added.add_argument("--least-from", default="")
    added.add_argument("--kind", default="venv")
    added.add_argument("files", type=Path, nargs="+")
    verbs.add_parser("pack").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.verb == "pack":
        pack(ROOT, given.out)
        return 0
    repository = Repository(given.repository, given.keys)
    if given.verb == "init":
        repository.init()
        shutil.copyfile(repository.root_file, given.repository / "trusted-root.json")
        print(f"give {given.repository / 'trusted-root.json'} to every node")
    elif given.verb == "add":
        artefacts = {given.kind: given.files}
        repository.add(
            given.channel, given.version, artefacts, notes=given.notes, least_from=given.least_from
        )
    else:
        repository.refresh()
    return 0


if __name__ == "__main__":
    sys.exit(main())
