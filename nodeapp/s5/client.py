"""S5 client: put a blob into our portal, take one from any portal and believe only its hash.

A portal is a stranger: the answer is cut off at the size the CID states, redirects are not
followed, and every byte is hashed before it is returned.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import aiohttp
import msgspec
import stamina
from blake3 import blake3

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, TooLarge, Unavailable
from nodeapp.core.ids import Cid
from nodeapp.s5.blobs import COPY_BYTES
from nodeapp.s5.cid import BlobId, blob_id_of, cid_of, parse_cid
from nodeapp.s5.portal import UPLOAD

MAX_REPLY_BYTES = 4096
_TRANSPORT_ERRORS = (aiohttp.ClientError, OSError)


class _Uploaded(msgspec.Struct, frozen=True):
    cid: Annotated[str, msgspec.Meta(max_length=128)]


async def upload_blob(socket_path: Path, data: bytes, *, deadline_seconds: float = 30.0) -> Cid:
    """Store a blob in the portal behind a Unix socket, again until the deadline if need be.

    Returns:
        The base32 CID, computed here and confirmed by the portal.

    Raises:
        TooLarge: over the portal's limit.
        Rejected: the portal stored something else.
        Unavailable: the portal cannot be reached or is full, and the deadline passed.
    """
    async for attempt in stamina.retry_context(
        on=Unavailable, attempts=None, timeout=deadline_seconds, wait_initial=0.05, wait_max=1.0
    ):
        with attempt:
            return await _upload(socket_path, data, deadline_seconds)
    raise Unavailable(f"no upload inside {deadline_seconds:g} s")


async def download_blob(
    portal_url: str, cid: str, *, max_bytes: int, deadline_seconds: float = 30.0
) -> bytes:
    """Fetch a blob and check its hash and size.

    Args:
        portal_url: "http(s)://host[:port]", without the /s5 path.
        cid: any form of the identifier.
        max_bytes: refuse a CID that states more, before asking for it.
        deadline_seconds: for the whole transfer.

    Raises:
        InvalidRequest: not a CID, or not an http(s) address.
        NotFound: the portal does not have it.
        TooLarge: the CID states more than max_bytes.
        Rejected: the bytes are not the blob's.
        Unavailable: the portal cannot be reached in time.
    """
    if not portal_url.startswith(("http://", "https://")):
        raise InvalidRequest(f"portal {portal_url} is not an http or https address")
    return await _fetch(None, portal_url.rstrip("/"), cid, max_bytes, deadline_seconds)


async def load_blob(
    socket_path: Path, cid: str, *, max_bytes: int, deadline_seconds: float = 10.0
) -> bytes:
    """Fetch a blob from the portal behind a Unix socket; as `download_blob` in all else."""
    connector = aiohttp.UnixConnector(path=str(socket_path))
    return await _fetch(connector, "http://s5", cid, max_bytes, deadline_seconds)


def check_blob(cid: str, data: bytes) -> bytes:
    """The bytes, if they are the blob's.

    Raises:
        InvalidRequest: not a CID.
        Rejected: they are not.
    """
    blob = parse_cid(cid)
    if blake3(data).digest() != blob.hash or blob.size not in (0, len(data)):
        raise Rejected(f"{len(data)} bytes that are not blob {blob.hex}")
    return data


async def _fetch(
    connector: aiohttp.BaseConnector | None,
    base_url: str,
    cid: str,
    max_bytes: int,
    deadline_seconds: float,
) -> bytes:
    blob = parse_cid(cid)
    if blob.size > max_bytes:
        raise TooLarge(f"blob has {blob.size} bytes, at most {max_bytes} are taken")
    url = f"{base_url}/s5/blob/{cid_of(blob)}"
    try:
        async with (
            asyncio.timeout(deadline_seconds),
            aiohttp.ClientSession(connector=connector) as session,
        ):
            return await _download(session, url, blob, blob.size or max_bytes)
    except TimeoutError as error:
        raise Unavailable(f"{base_url}: no blob inside {deadline_seconds:g} s") from error
    except _TRANSPORT_ERRORS as error:
        raise Unavailable(f"{base_url}: {type(error).__name__}: {error}") from error


async def _upload(socket_path: Path, data: bytes, seconds: float) -> Cid:
    connector = aiohttp.UnixConnector(path=str(socket_path))
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://s5{UPLOAD}", data=data) as response,
        ):
            body = await response.content.read(MAX_REPLY_BYTES)
            status = response.status
    except TimeoutError as error:
        raise Unavailable(f"s5 portal: no answer inside {seconds:g} s") from error
    except _TRANSPORT_ERRORS as error:
        raise Unavailable(f"s5 portal is not reachable: {type(error).__name__}") from error
    if status == 413:
        raise TooLarge(f"blob of {len(data)} bytes is over the portal's limit")
    if status != 200:
        raise Unavailable(f"s5 portal answered {status}")
    return _confirmed(body, blob_id_of(data))


def _confirmed(body: bytes, blob: BlobId) -> Cid:
    try:
        stored = parse_cid(msgspec.json.decode(body, type=_Uploaded).cid)
    except (msgspec.DecodeError, InvalidRequest) as error:
        raise Rejected("s5 portal answered no cid") from error
    if stored != blob:
        raise Rejected(f"s5 portal stored {cid_of(stored)}, not {cid_of(blob)}")
    return cid_of(blob)


async def _download(session: aiohttp.ClientSession, url: str, blob: BlobId, limit: int) -> bytes:
    async with session.get(url, allow_redirects=False, auto_decompress=False) as response:
        if response.status == 404:
            raise NotFound(f"portal does not have blob {blob.hex}")
        if response.status != 200:
            raise Unavailable(f"portal answered {response.status}")
        digest, parts, size = blake3(), [], 0
        async for chunk in response.content.iter_chunked(COPY_BYTES):
            size += len(chunk)
            if size > limit:
                raise Rejected(f"portal sent more than the {limit} bytes of the blob")
            digest.update(chunk)
            parts.append(chunk)
    if digest.digest() != blob.hash or blob.size not in (0, size):
        raise Rejected(f"portal sent {size} bytes that are not blob {blob.hex}")
    return b"".join(parts)
