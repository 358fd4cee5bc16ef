"""The s5 process's endpoints: the portal's routes once the store is open."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from nodeapp.core.errors import Unavailable
from nodeapp.s5.blobs import BlobStore
from nodeapp.s5.portal import BLOB, UPLOAD, serve_blob, upload


class StorageApi:
    """For this machine's own processes; strangers read on the TCP side."""

    def __init__(self) -> None:
        self._store: BlobStore | None = None

    def open(self, store: BlobStore) -> None:
        """Begin to answer."""
        self._store = store

    def routes(self) -> Sequence[web.RouteDef]:
        """POST /s5/upload, GET /s5/blob/<cid>."""
        return (web.post(UPLOAD, self._upload), web.get(BLOB, self._blob))

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        return await upload(request, self._opened())

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        return await serve_blob(request, self._opened())

    def _opened(self) -> BlobStore:
        if self._store is None:
            raise Unavailable("s5 has no blob store yet", retry_after_seconds=1)
        return self._store
