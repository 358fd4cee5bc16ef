"""What a backup says about itself: `manifest.json`, the first thing that a restore reads.

Layout of a backup (the "stage"): manifest.json, journals/<process>.sqlite, settings/*, keys.sealed;
beside the stage the blobs of the s5 process, which are named by their hashes, and the audit logs,
of which the manifest says where each ended. Models, caches, proofs, logs and sockets are left out:
all of them can be made or fetched again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from nodeapp.core.audit import Head
from nodeapp.core.errors import Corrupt
from nodeapp.store.digest import sha256_of

FORMAT = 2
"""2: heads of the audit logs."""
MANIFEST = "manifest.json"
JOURNALS = "journals"
SETTINGS = "settings"
KEYS = "keys.sealed"
RelativePath = Annotated[
    str, msgspec.Meta(max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the stage."""

    path: RelativePath
    sha256: str
    size_bytes: int


class JournalEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chain's journal; `head` covers all its records and its state."""

    process: Annotated[str, msgspec.Meta(pattern="^chain(-[a-z][a-z0-9]{0,15})?$")]
    owner: str
    schema: int
    records: int
    head: str

    @property
    def path(self) -> str:
        """Its place in the stage."""
        return f"{JOURNALS}/{self.process}.sqlite"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of a backup."""

    made_at: int
    """Unix seconds."""
    node_version: str
    source: Literal["btrfs", "copy"]
    journals: Annotated[tuple[JournalEntry, ...], msgspec.Meta(min_length=1, max_length=64)]
    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(max_length=10_000)]
    blobs: int = 0
    blob_bytes: int = 0
    key_names: tuple[str, ...] = ()
    """What is in keys.sealed; empty: no keys are in this backup."""
    audit: dict[str, Head] = {}
    """Where each audit log ended; by a log's directory."""

    @property
    def account(self) -> str:
        """Whose node this is: the owner of the first chain's journal."""
        return self.journals[0].owner

    @property
    def records(self) -> int:
        """Of all journals together."""
        return sum(one.records for one in self.journals)

    def content(self) -> str:
        """Equal for two backups of an unchanged node.

        Sealed keys never have the same bytes, and a journal's file says less than its head. That a
        backup was made goes into an audit log: those alone are no reason for another one.
        """
        compared = tuple(one for one in self.files if one.path.startswith(SETTINGS))
        same = msgspec.structs.replace(self, made_at=0, files=compared, audit={})
        return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


class _Versioned(msgspec.Struct, frozen=True):
    format: int
    node_version: str = "unknown"


def write_manifest(stage: Path, manifest: Manifest) -> None:
    """Last of the stage's files."""
    head = {"format": FORMAT, **msgspec.to_builtins(manifest)}
    (stage / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(head)))


def read_manifest(stage: Path) -> Manifest:
    """Decode it; the format is looked at first, so that a newer one is told as such.

    Raises:
        Corrupt: missing, damaged, or of a newer program.
    """
    try:
        text = (stage / MANIFEST).read_bytes()
        found = msgspec.json.decode(text, type=_Versioned)
        if found.format > FORMAT:
            raise Corrupt(
                f"the backup has format {found.format} (node {found.node_version}), this program"
                f" knows {FORMAT}: update the node first"
            )
        plain = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        del plain["format"]
        return msgspec.json.decode(msgspec.json.encode(plain), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise Corrupt(f"the backup's {MANIFEST} cannot be read: {error}") from error


def entry_of(stage: Path, path: Path) -> FileEntry:
    """A file of the stage as the manifest lists it."""
    return FileEntry(str(path.relative_to(stage).as_posix()), sha256_of(path), path.stat().st_size)


def check_files(stage: Path, manifest: Manifest) -> None:
    """Every file there, none altered.

    Raises:
        Corrupt: names the first one that is not as it was.
    """
    listed = {one.path for one in manifest.files}
    for one in manifest.files:
        path = stage / one.path
        if ".." in Path(one.path).parts or not path.is_file():
            raise Corrupt(f"the backup's file {one.path} is missing")
        if sha256_of(path) != one.sha256:
            raise Corrupt(f"the backup's file {one.path} was altered")
    for journal in manifest.journals:
        if journal.path not in listed:
            raise Corrupt(f"the backup lists no file for journal {journal.process}")
