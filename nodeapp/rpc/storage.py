"""Asking the s5 process to keep a blob."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.ids import Cid
from nodeapp.s5.client import upload_blob

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
