"""One large file over HTTP: resumed where it stopped, hashed while it comes, bounded in size.

The part lies beside a note of where it came from and its validator (ETag). A part is continued
only when the server confirms by If-Range that the file is still the same; its bytes are hashed
again first, because a disk may have lost some. Plain http is taken only with a known hash.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
from blake3 import blake3

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, TooLarge, Unavailable

CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 5
STALL_SECONDS = 60.0
MAX_TRIES = 6
"""In a row without a new byte."""
RETRY_SECONDS = 1.0
_MOVED = (301, 302, 303, 307, 308)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRANSPORT_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes so far and in all; 0: not said. `resumed` were there before."""

    done: int
    total: int
    resumed: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to fetch; hashes in lower-case hex, "" when not known; `max_bytes` bounds it."""

    url: str
    max_bytes: int
    sha256: str = ""
    blake3: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file."""

    path: Path
    sha256: str
    size_bytes: int


Report = Callable[[Progress], None]
CheckRoom = Callable[[int], None]


class _Note(msgspec.Struct, frozen=True):
    url: str
    validator: str


class _Hashes:
    """Both hashes of everything written so far."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.blake3: Any = blake3()  # no stubs
        self.size = 0

    def update(self, chunk: bytes) -> None:
        self.sha256.update(chunk)
        self.blake3.update(chunk)
        self.size += len(chunk)


async def download(wanted: Wanted, part: Path, *, report: Report, check_room: CheckRoom) -> Fetched:
    """Fetch into `part`, trying again and going on where it stopped.

    Args:
        wanted: address, bound, expected hashes.
        part: grows there; kept when this fails, so that the next call goes on. Its note lies in
            `<part>.note`. Both are deleted when the content is wrong.
        report: told about progress.
        check_room: raises when so many bytes have no room; asked before the first is written.

    Raises:
        InvalidRequest: an address of another kind, or plain http without a hash.
        NotFound: the server does not have it.
        TooLarge: over the bound or the disk.
        Rejected: the server refuses, or the content has another hash.
        Unavailable: the connection broke MAX_TRIES times without a new byte.
    """
    _check_scheme(wanted.url, wanted)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=STALL_SECONDS)
    transfer = _Transfer(wanted, part, report, check_room)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        tries = 0
        while True:
            before = transfer.size
            try:
                await transfer.run(session)
            except _TRANSPORT_ERRORS as error:
                refuse_if_full(error, part)
                tries = 0 if transfer.size > before else tries + 1
                if tries >= MAX_TRIES:
                    raise Unavailable(
                        f"{wanted.url}: {type(error).__name__}: {error}; {transfer.size} bytes "
                        "are kept, the same command goes on from there"
                    ) from error
                await asyncio.sleep(RETRY_SECONDS * (tries + 1))
            else:
                return await asyncio.to_thread(transfer.finish)


class _Transfer:
    """State of one file across several connections."""

    def __init__(self, wanted: Wanted, part: Path, report: Report, check_room: CheckRoom) -> None:
        self._wanted = wanted
        self._part = part
        self._note = part.with_name(part.name + ".note")
        self._report = report
        self._check_room = check_room
        self._hashes = _Hashes()
        self._resumed = 0

    @property
    def size(self) -> int:
        """Bytes on disk and hashed."""
        return self._hashes.size

    async def run(self, session: aiohttp.ClientSession) -> None:
        """One request, to the end of its body."""
        validator = await asyncio.to_thread(self._take_up)
        headers = {"Accept-Encoding": "identity"}
        if self.size:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": validator}
        async with await self._open(session, headers) as response:
            if response.status == 416 and _total_of(response) == self.size:
                return
            if response.status == 416:
                await asyncio.to_thread(self._forget)
                raise aiohttp.ClientPayloadError("the part did not fit the file")
            await self._receive(response)

    async def _open(
        self, session: aiohttp.ClientSession, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """Follow redirects by hand: none may lead from https to http."""
        url = self._wanted.url
        for _ in range(MAX_REDIRECTS + 1):
            response = await session.get(url, headers=headers, allow_redirects=False)
            if response.status not in _MOVED:
                _check_status(response, url)
                return response
            response.release()
            target = _target(url, response.headers.get("Location", ""))
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise Rejected(f"{url} leads from https to {target[:200]}")
            _check_scheme(target, self._wanted)
            url = target
        raise Rejected(f"{self._wanted.url} redirects more than {MAX_REDIRECTS} times")

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200 and self.size:
            await asyncio.to_thread(self._forget)
        elif response.status == 206 and _start_of(response) != self.size:
            await asyncio.to_thread(self._forget)
            raise aiohttp.ClientPayloadError("the server went on at another place")
        left = response.content_length
        total = self.size + left if left is not None else 0
        self._check_size(total)
        self._check_room(left if left is not None else 0)
        await asyncio.to_thread(self._write_note, _validator(response))
        with await asyncio.to_thread(self._part.open, "ab") as file:
            self._report(Progress(self.size, total, self._resumed))
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                self._check_size(self.size + len(chunk))
                await asyncio.to_thread(self._append, file, chunk)
                self._report(Progress(self.size, total, self._resumed))
            await asyncio.to_thread(_sync, file)
        if left is not None and self.size != total:
            raise aiohttp.ClientPayloadError(f"ended after {self.size} of {total} bytes")

    def finish(self) -> Fetched:
        """Compare the hashes; the note is not needed any more."""
        found = {
            "sha256": self._hashes.sha256.hexdigest(),
            "blake3": self._hashes.blake3.hexdigest(),
        }
        for kind, value in found.items():
            expected = getattr(self._wanted, kind)
            if expected and value != expected:
                self._forget()
                raise Rejected(
                    f"{self._wanted.url} has {kind} {value}, expected {expected}: it was deleted"
                )
        self._note.unlink(missing_ok=True)
        return Fetched(self._part, found["sha256"], self.size)

    def _take_up(self) -> str:
        """Hash what is on disk when it may be continued; returns its validator."""
        is_known = self.size and self._part.is_file() and self._part.stat().st_size == self.size
        if not is_known:
            self._hashes = _Hashes()
        try:
            note = msgspec.json.decode(self._note.read_bytes(), type=_Note)
        except (FileNotFoundError, msgspec.DecodeError):
            note = _Note("", "")
        if note.url != self._wanted.url or not note.validator or not self._part.is_file():
            self._forget()
            return ""
        if is_known:
            return note.validator
        with self._part.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._hashes.update(chunk)
        self._resumed = self.size
        return note.validator

    def _forget(self) -> None:
        self._hashes = _Hashes()
        self._resumed = 0
        for path in (self._part, self._note):
            path.unlink(missing_ok=True)

    def _append(self, file: IO[bytes], chunk: bytes) -> None:
        file.write(chunk)
        self._hashes.update(chunk)

    def _write_note(self, validator: str) -> None:
        self._note.write_bytes(msgspec.json.encode(_Note(self._wanted.url, validator)))

    def _check_size(self, size: int) -> None:
        if size > self._wanted.max_bytes:
            raise TooLarge(
                f"{self._wanted.url} has {size} bytes or more, limit {self._wanted.max_bytes}"
            )


def _target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Rejected(f"{url} leads to {location[:200]!r}, no address") from error


def refuse_if_full(error: Exception, path: Path) -> None:
    """Say that the disk is full when that is what the error means: trying again is of no use.

    Raises:
        TooLarge: it is.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        raise TooLarge(f"the disk of {path.parent} is full: make room, then try again") from error


def _check_scheme(url: str, wanted: Wanted) -> None:
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise InvalidRequest(f"{url[:200]!r} is not an address: {error}") from error
    if scheme == "https" or (scheme == "http" and (wanted.sha256 or wanted.blake3)):
        return
    if scheme == "http":
        raise InvalidRequest(f"{url} is not encrypted: give --sha256, or an https address")
    raise InvalidRequest(f"{url[:200]} is not an https address")


def _check_status(response: aiohttp.ClientResponse, url: str) -> None:
    status = response.status
    if status in (200, 206, 416):
        return
    response.release()
    if status in (404, 410):
        raise NotFound(f"{url} does not exist (status {status})")
    if status in (408, 425, 429) or status >= 500:
        raise aiohttp.ClientPayloadError(f"status {status}")
    raise Rejected(f"{url} was refused with status {status}")


def _validator(response: aiohttp.ClientResponse) -> str:
    """Only a strong one promises the same bytes (RFC 9110, 8.8.1)."""
    etag = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag


def _start_of(response: aiohttp.ClientResponse) -> int:
    text = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdigit() else -1


def _total_of(response: aiohttp.ClientResponse) -> int:
    text = response.headers.get("Content-Range", "").partition("/")[2]
    return int(text) if text.isdigit() else -1


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
