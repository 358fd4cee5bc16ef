"""What `updater` may be asked: snapshots of the journal, backups, the version that runs."""

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


class ReplayReport(Message, frozen=True):
    """What a journal holds once it was replayed."""

    owner: str
    sessions: int
    unsettled: int
    unclaimed_tokens: int
    """Acknowledged by renters and not claimed yet, in unsettled sessions."""
    pending_transactions: int
    block_number: int


class BackupView(Message, frozen=True):
    """A backup in the repository that was restored for a test and replayed."""

    id: str
    records: int
    """Of all journals together."""
    sessions: int
    bytes_added: int
    seconds: float
    has_keys: bool
    is_new: bool
    """False: nothing had changed since the one that is named."""


class RestoreStep(Message, frozen=True):
    """One thing that a restore writes; `action` is create, replace or keep."""

    what: str
    target: str
    action: str
    detail: str


class RestorePreview(Message, frozen=True):
    """A backup beside what is on this machine, before anything is written."""

    id: str
    made_at: int
    """Unix seconds."""
    age: str
    node_version: str
    account: str
    steps: tuple[RestoreStep, ...]
    missing_keys: tuple[str, ...]
    """Neither in the backup (or its password was not given) nor here."""


class StateSnapshotRequest(Message, frozen=True):
    """Keep the state as it is, e.g. before an update: reason "pre-1.2.0"."""

    reason: str


class StateSnapshotView(Message, frozen=True):
    """A snapshot of the whole state: a btrfs subvolume, or a copy."""

    path: str
    reason: str
    made_at: float


class DrillReport(Message, frozen=True):
    """A full restore into an empty directory, opened and replayed there."""

    preview: RestorePreview
    journals: tuple[ReplayReport, ...]
    keys: tuple[str, ...]
    blobs: int
    fetch_seconds: float
    """From the repository, with all checks."""
    restore_seconds: float
    """Writing the files and replaying them once more."""
