"""The embedded S5 portal: the part of the portal HTTP API that hosts and renters need.

Reading is open (blobs are public by hash, and ours are sealed to their renter); uploading is
only offered where the caller mounts `upload`, which is the process's Unix socket.
Blobs are strangers' bytes: they are served as attachments that no browser may interpret.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import IO

from aiohttp import BodyPartReader, web

from nodeapp.core.errors import InvalidRequest, NodeError, NotFound, TooLarge
from nodeapp.s5.blobs import COPY_BYTES, BlobStore, StoredBlob
from nodeapp.s5.cid import BlobId, cid_of, parse_cid

UPLOAD = "/s5/upload"
BLOB = "/s5/blob/{cid}"
DOWNLOAD = "/s5/download/{cid}"
VERSION = "/s5/version"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUS: tuple[tuple[type[NodeError], int], ...] = (
    (NotFound, 404),
    (TooLarge, 413),
    (InvalidRequest, 400),
)
_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Content-Disposition": "attachment",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "public, max-age=31536000, immutable",
    "Accept-Ranges": "bytes",
    "Access-Control-Allow-Origin": "*",
}


def read_routes(store: BlobStore, version: str) -> Sequence[web.RouteDef]:
    """GET and HEAD of blobs, and the portal's version."""

    async def blob(request: web.Request) -> web.StreamResponse:
        return await serve_blob(request, store)

    async def about(_request: web.Request) -> web.Response:
        return web.json_response({"node": "fabstir-node", "version": version})

    return (web.get(BLOB, blob), web.get(DOWNLOAD, blob), web.get(VERSION, about))


async def serve_blob(request: web.Request, store: BlobStore) -> web.StreamResponse:
    """Answer a GET or HEAD of BLOB."""
    return await _serve(request, await store.find(parse_cid(request.match_info["cid"])))


async def upload(request: web.Request, store: BlobStore) -> web.Response:
    """Take in a blob, as the raw body or the multipart field `file`; answers its CID."""
    return web.json_response({"cid": cid_of(await store.put(_body(request)))})


def public_app(store: BlobStore, version: str) -> web.Application:
    """The read-only application for TCP, with errors as JSON."""
    app = web.Application(middlewares=[_errors_to_json], client_max_size=1024)
    app.router.add_routes(read_routes(store, version))
    return app


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    if request.content_type != "multipart/form-data":
        async for chunk in request.content.iter_chunked(COPY_BYTES):
            yield chunk
        return
    async for part in await request.multipart():
        if isinstance(part, BodyPartReader) and part.name == "file":
            while chunk := await part.read_chunk(COPY_BYTES):
                yield chunk
            return
    raise InvalidRequest("multipart upload has no field `file`")


async def _serve(request: web.Request, blob: StoredBlob) -> web.StreamResponse:
    etag = _etag(blob.id)
    if etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers={"ETag": etag})
    span = _span(request, blob.id.size)
    if span is None:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{blob.id.size}"})
    response = web.StreamResponse(headers=_HEADERS | {"ETag": etag})
    if "Range" in request.headers:
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.id.size}"
    response.content_length = len(span)
    await response.prepare(request)
    if request.method != "HEAD":
        handle = await asyncio.to_thread(blob.path.open, "rb")
        try:
            await _copy(handle, response, span)
        finally:
            handle.close()
    await response.write_eof()
    return response


async def _copy(handle: IO[bytes], response: web.StreamResponse, span: range) -> None:
    await asyncio.to_thread(handle.seek, span.start)
    left = len(span)
    while left:
        chunk = await asyncio.to_thread(handle.read, min(COPY_BYTES, left))
        if not chunk:
            raise ConnectionResetError("blob is shorter than it was")
        await response.write(chunk)
        left -= len(chunk)


def _span(request: web.Request, size: int) -> range | None:
    """The bytes asked for; None where there are none."""
    try:
        asked = request.http_range
    except ValueError as error:
        raise InvalidRequest("range header is malformed") from error
    span = range(*slice(asked.start, asked.stop).indices(size))
    return span if span or "Range" not in request.headers else None


def _etag(blob: BlobId) -> str:
    return '"' + base64.urlsafe_b64encode(b"\x1e" + blob.hash).decode().rstrip("=") + '"'


@web.middleware
async def _errors_to_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except NodeError as error:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 503)
        return web.json_response({"error": error.message}, status=status)
