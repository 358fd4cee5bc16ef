"""Blobs on disk, by hash: `blobs/ab/<64 hex>`.

A blob is written beside its place, flushed to the disk and linked into it, so that it is
there whole or not at all, also after a power cut. One process owns the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blake3 import blake3

from nodeapp.core.errors import NotFound, TooLarge, Unavailable
from nodeapp.s5.cid import BlobId

COPY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is there."""

    id: BlobId
    path: Path


class BlobStore:
    """Content-addressed files with a quota; built by `open_blob_store`."""

    def __init__(self, root: Path, *, max_blob_bytes: int, quota_bytes: int, used: int) -> None:
        self._blobs = root / "blobs"
        self._incoming = root / "incoming"
        self._max_blob_bytes = max_blob_bytes
        self._quota_bytes = quota_bytes
        self._reserved = used

    @property
    def used_bytes(self) -> int:
        """Bytes of all blobs, those on their way in included."""
        return self._reserved

    async def put(self, chunks: AsyncIterable[bytes]) -> BlobId:
        """Take in a blob; it is on disk when this returns. A blob that is there is kept.

        Raises:
            TooLarge: more than max_blob_bytes.
            Unavailable: the quota or the disk is full.
        """
        digest, size = blake3(), 0
        handle = await asyncio.to_thread(self._begin)
        try:
            async for chunk in chunks:
                self._reserve(len(chunk), already=size)
                size += len(chunk)
                digest.update(chunk)
                await asyncio.to_thread(handle.write, chunk)
            blob = BlobId(digest.digest(), size)
            if not await asyncio.to_thread(self._finish, handle, blob):
                self._reserved -= size
        except BaseException:
            self._reserved -= size
            raise
        finally:
            _discard(handle)  # not awaited, so that a cancelled upload leaves nothing
        return blob

    async def find(self, blob: BlobId) -> StoredBlob:
        """Look a blob up by hash, and by size where the CID states one.

        Raises:
            NotFound: no such blob here.
        """
        path = self._path(blob)
        try:
            size = (await asyncio.to_thread(path.stat)).st_size
        except FileNotFoundError as error:
            raise NotFound(f"no blob {blob.hex} here") from error
        if blob.size not in (0, size):
            raise NotFound(f"blob {blob.hex} has {size} bytes, not {blob.size}")
        return StoredBlob(BlobId(blob.hash, size), path)

    def _reserve(self, more: int, *, already: int) -> None:
        if already + more > self._max_blob_bytes:
            raise TooLarge(f"blob is larger than {self._max_blob_bytes} bytes")
        if self._reserved + more > self._quota_bytes:
            raise Unavailable(f"blob store is full: quota {self._quota_bytes} bytes")
        self._reserved += more

    def _begin(self) -> IO[bytes]:
        try:
            return tempfile.NamedTemporaryFile(dir=self._incoming, delete=False)
        except OSError as error:
            raise Unavailable(f"blob store cannot write: {error}") from error

    def _finish(self, handle: IO[bytes], blob: BlobId) -> bool:
        """Link the file into its place; False if the blob was there already."""
        path = self._path(blob)
        try:
            handle.flush()
            os.fsync(handle.fileno())
            path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                os.link(handle.name, path)
            except FileExistsError:
                return False
            for directory in (path.parent, self._blobs):
                _sync_directory(directory)
        except OSError as error:
            raise Unavailable(f"blob store cannot write: {error}") from error
        return True

    def _path(self, blob: BlobId) -> Path:
        return self._blobs / blob.hex[:2] / blob.hex


def open_blob_store(root: Path, *, max_blob_bytes: int, quota_bytes: int) -> BlobStore:
    """Open or make a store; uploads that a crash cut off are removed. Blocks (walks the tree)."""
    incoming = root / "incoming"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(incoming)
    for directory in (root, root / "blobs", incoming):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    used = sum(path.stat().st_size for path in (root / "blobs").glob("*/*"))
    return BlobStore(root, max_blob_bytes=max_blob_bytes, quota_bytes=quota_bytes, used=used)


def _discard(handle: IO[bytes]) -> None:
    """Close an incoming file and remove its name; what was linked into its place stays."""
    handle.close()
    Path(handle.name).unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """As store/atomic.py's; adapters do not import one another."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
