"""Model files on disk by their hash: take in, find, hold while used, remove, make room.

Layout: `catalogue.json`, `blobs/sha256-<64 hex>` (read-only files), `parts/` (downloads).
Whoever loads a blob holds a shared flock(2) on it: the kernel counts the users and forgets the
dead ones. A blob is removed only under an exclusive lock, so never one that is in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
import stamina

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, TooLarge, Unavailable
from nodeapp.inference.catalogue import (
    MAX_MODELS,
    CatalogueEntry,
    checked_digest,
    checked_name,
    read_catalogue,
    write_catalogue,
)
from nodeapp.service.paths import Paths
from nodeapp.service.settings import InferenceSettings
from nodeapp.store.lock import FileLock

DISK_RESERVE_BYTES = 1 << 30
"""Left free for the journal and everything else that must never find the disk full."""
LOCK_SECONDS = 10.0


class BlobHold:
    """A blob that stays while this is open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def close(self) -> None:
        """Let go."""
        self._file.close()


class ModelStore:
    """`budget_bytes` bounds all blobs together; 0: only the disk does."""

    def __init__(self, root: Path, *, budget_bytes: int = 0) -> None:
        self._root = root
        self._budget = budget_bytes
        self._catalogue = root / "catalogue.json"

    @property
    def root(self) -> Path:
        """The directory of everything."""
        return self._root

    @property
    def parts(self) -> Path:
        """Where downloads grow; on the same file system as the blobs."""
        return self._root / "parts"

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """The catalogue, by name.

        Raises:
            Corrupt: it is damaged.
        """
        return tuple(sorted(read_catalogue(self._catalogue), key=lambda entry: entry.name))

    def find(self, name: str) -> CatalogueEntry:
        """One entry.

        Raises:
            NotFound: no such name; says which there are.
        """
        entries = self.entries()
        for entry in entries:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in entries) or "none"
        raise NotFound(
            f"model {name[:80]!r} is not in the catalogue (there: {known}); "
            "`fabstir-node model add` adds one"
        )

    def has(self, name: str) -> bool:
        """There is an entry of this name.

        Raises:
            Corrupt: the catalogue is damaged.
        """
        return any(entry.name == name for entry in self.entries())

    def blob(self, sha256: str) -> Path:
        """Where the file with this hash lies, or would."""
        return self._root / "blobs" / f"sha256-{checked_digest(sha256)}"

    def hold(self, sha256: str) -> BlobHold:
        """Keep a blob from being removed.

        Raises:
            NotFound: it is not there (any more).
        """
        path = self.blob(sha256)
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"model file {path} is gone: add the model again") from error
        # Waits for the moment in which someone looks whether it is in use, or removes it.
        fcntl.flock(file, fcntl.LOCK_SH)
        if not os.fstat(file.fileno()).st_nlink:
            file.close()
            raise NotFound(f"model file {path} was just removed: add the model again")
        return BlobHold(file)

    def is_in_use(self, sha256: str) -> bool:
        """Some process holds the blob."""
        with self._exclusive(self.blob(sha256)) as is_free:
            return not is_free

    def used_bytes(self) -> int:
        """Of all blobs."""
        blobs = self._root / "blobs"
        return sum(path.stat().st_size for path in blobs.iterdir()) if blobs.is_dir() else 0

    def check_room(self, size: int) -> None:
        """See that a file of this size can be taken in at all, before it is fetched.

        Raises:
            TooLarge: larger than the store may ever be, or than the disk's free space.
        """
        if self._budget and size > self._budget:
            raise TooLarge(
                f"model has {size} bytes, inference.store_bytes is {self._budget}: raise it"
            )
        self._make()
        free = shutil.disk_usage(self._root).free
        if size + DISK_RESERVE_BYTES > free:
            raise TooLarge(
                f"model has {size} bytes, {self._root} has {free} free and {DISK_RESERVE_BYTES} "
                "must stay so: remove a model or set inference.store_dir"
            )

    def take_in(self, part: Path, entry: CatalogueEntry) -> tuple[str, ...]:
        """Move a complete, checked file into the store and list it.

        Returns:
            Names of the models that were removed to make room.

        Raises:
            Rejected: another model has this name, or nothing more may be removed.
        """
        with self._changing() as entries:
            self._check_new(entry, entries)
            target = self.blob(entry.sha256)
            removed: list[str] = []
            if not target.exists():
                removed = self._make_room(entry.size_bytes, entries)
                part.chmod(0o444)
                part.replace(target)
                _sync_directory(target.parent)
            kept = [other for other in entries if other.name not in (entry.name, *removed)]
            write_catalogue(self._catalogue, (*kept, entry))
        return tuple(removed)

    def remove(self, name: str) -> CatalogueEntry:
        """Take a model off the list, and its file away unless another name has the same.

        Raises:
            NotFound: no such name.
            Rejected: in use or pinned.
        """
        with self._changing() as entries:
            entry = self.find(name)
            if entry.pinned:
                raise Rejected(f"model {name} is pinned: `fabstir-node model unpin {name}` first")
            others = [other for other in entries if other.name != name]
            if not self._drop(entry, others):
                raise Rejected(f"model {name} is in use: `fabstir-node model use` another first")
            write_catalogue(self._catalogue, others)
        return entry

    def change(
        self, name: str, *, pinned: bool | None = None, used_at: int | None = None
    ) -> CatalogueEntry:
        """Pin, unpin, or note that a model was loaded.

        Raises:
            NotFound: no such name.
        """
        with self._changing() as entries:
            entry = self.find(name)
            changed = msgspec.structs.replace(
                entry,
                pinned=entry.pinned if pinned is None else pinned,
                last_used=entry.last_used if used_at is None else used_at,
            )
            others = [other for other in entries if other.name != name]
            write_catalogue(self._catalogue, (*others, changed))
        return changed

    def _check_new(self, entry: CatalogueEntry, entries: tuple[CatalogueEntry, ...]) -> None:
        checked_name(entry.name)
        for other in entries:
            if other.name == entry.name and other.sha256 != entry.sha256:
                raise Rejected(
                    f"model {entry.name} is there with sha256 {other.sha256}: "
                    "remove it first or give another --name"
                )
        if len(entries) >= MAX_MODELS:
            raise Rejected(f"the catalogue holds {MAX_MODELS} models: remove some")

    def _make_room(self, size: int, entries: tuple[CatalogueEntry, ...]) -> list[str]:
        """Remove what was used longest ago until the new file fits into the budget."""
        removed: list[str] = []
        left = list(entries)
        for entry in sorted(entries, key=lambda one: one.last_used or one.added_at):
            if not self._budget or self.used_bytes() + size <= self._budget:
                return removed
            others = [other for other in left if other.name != entry.name]
            if not entry.pinned and self._drop(entry, others):
                removed.append(entry.name)
                left = others
                # Written at once: a crash must not leave a name without its file.
                write_catalogue(self._catalogue, left)
        if self._budget and self.used_bytes() + size > self._budget:
            raise TooLarge(
                f"{size} bytes more do not fit into inference.store_bytes {self._budget}: what is "
                f"left of {self.used_bytes()} is in use or pinned"
            )
        return removed

    def _drop(self, entry: CatalogueEntry, others: list[CatalogueEntry]) -> bool:
        """Delete the file unless another entry needs it; False when a process uses it."""
        if any(other.sha256 == entry.sha256 for other in others):
            return True
        path = self.blob(entry.sha256)
        with self._exclusive(path) as is_free:
            if is_free:
                path.unlink(missing_ok=True)
            return is_free

    @contextmanager
    def _exclusive(self, path: Path) -> Iterator[bool]:
        """Lock out every user of a blob while inside; yields False when there is one."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            yield True
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def _changing(self) -> Iterator[tuple[CatalogueEntry, ...]]:
        """One writer at a time, also across processes."""
        self._make()
        lock = FileLock(self._root / "catalogue.lock")
        take: Callable[[], None] = stamina.retry(
            on=Unavailable, attempts=None, timeout=LOCK_SECONDS, wait_initial=0.02, wait_max=0.2
        )(lambda: lock.acquire(f"model catalogue {self._catalogue}"))
        take()
        try:
            yield self.entries()
        finally:
            lock.release()

    def _make(self) -> None:
        for directory in (self._root, self._root / "blobs", self.parts):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidRequest(
                    f"model store {directory} cannot be made ({error.strerror}): "
                    "set inference.store_dir"
                ) from error


def model_store(settings: InferenceSettings, paths: Paths) -> ModelStore:
    """The store of these settings, for the process and for the command line."""
    root = Path(settings.store_dir) if settings.store_dir else paths.state / "models"
    return ModelStore(root, budget_bytes=settings.store_bytes)


def verdicts_file(paths: Paths) -> Path:
    """What the sandboxed loader said of files, by their hash; shared like other caches."""
    return paths.cache / "models" / "verdicts.json"


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
