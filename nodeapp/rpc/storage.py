"""Asking the s5 process to keep a blob, or for one it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.ids import Cid
from nodeapp.s5.client import load_blob, upload_blob

STORE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StorageClient:
    """The embedded portal behind its Unix socket."""

    socket_path: Path

    async def store(self, data: bytes) -> Cid:
        """Store a blob; content-addressed, so repeating it changes nothing.

        Raises:
            Unavailable: the portal did not come back inside STORE_SECONDS.
        """
        return await upload_blob(self.socket_path, data, deadline_seconds=STORE_SECONDS)

    async def load(self, cid: str, *, max_bytes: int) -> bytes:
        """A blob that is kept.

        Raises:
            InvalidRequest: not a CID.
            NotFound: it is not kept here.
            TooLarge: more than max_bytes.
            Unavailable: the portal does not answer.
        """
        return await load_blob(self.socket_path, cid, max_bytes=max_bytes)
