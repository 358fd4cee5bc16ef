"""What `updater` may be asked: snapshots of the journal and the version that runs."""

from __future__ import annotations

from nodeapp.wire.ipc import Message


class SnapshotView(Message, frozen=True):
    """A verified backup of the journal; `records` is its length."""

    path: str
    sha256: str
    size_bytes: int
    records: int


class SnapshotList(Message, frozen=True):
    """Oldest first."""

    snapshots: tuple[SnapshotView, ...]


class VersionView(Message, frozen=True):
    """What runs; `slot` is the boot slot on the appliance, "" elsewhere."""

    version: str
    python: str
    environment: str
    slot: str
