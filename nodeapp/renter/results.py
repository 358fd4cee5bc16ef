"""Fetch what a host published: from its portal, or over libp2p from the host itself.

The portal's address comes from the host, so it is asked only where private addresses may be
dialled or the address is public. Either way the bytes must be those of the CID.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nodeapp.core.errors import NotFound, ProtocolViolation, TooLarge, Unavailable
from nodeapp.network.host import Libp2pHost
from nodeapp.renter.link import connect_to
from nodeapp.renter.record import SessionHead
from nodeapp.s5.client import check_blob, download_blob
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb

PART_SECONDS = 15.0
Fetch = Callable[[str, int], Awaitable[bytes]]
"""(cid, most bytes) -> the blob."""


@dataclass(slots=True)
class Results:
    """Of one session; libp2p is started only when the portal does not do."""

    head: SessionHead
    is_private: bool
    start_host: Callable[[AsyncExitStack], Awaitable[Libp2pHost]]
    stack: AsyncExitStack
    _host: Libp2pHost | None = field(default=None)

    async def fetch(self, cid: str, max_bytes: int) -> bytes:
        """The blob, its hash checked.

        Raises:
            InvalidRequest: not a CID.
            TooLarge: it is larger than `max_bytes`.
            NotFound: neither portal nor host has it.
            Unavailable: neither can be reached.
        """
        try:
            if self.is_private or is_public_url(self.head.portal_url):
                return await download_blob(self.head.portal_url, cid, max_bytes=max_bytes)
        except (Unavailable, NotFound):
            pass
        return await self._from_host(cid, max_bytes)

    async def _from_host(self, cid: str, max_bytes: int) -> bytes:
        if self._host is None:
            self._host = await self.start_host(self.stack)
        await connect_to(self._host, self.head)
        stream = await self._host.open_stream(self.head.peer_id, [envelope.RESULTS_PROTOCOL])
        try:
            await stream.write_frame(envelope.encode(result_request=pb.ResultRequest(cid=cid)))
            blob = bytearray()
            while True:
                frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, PART_SECONDS)
                if frame is None:
                    raise Unavailable(f"host ended the stream after {len(blob)} bytes of {cid}")
                total = _take(frame, blob)
                if total > max_bytes:
                    raise TooLarge(f"host sends {total} bytes, at most {max_bytes} are taken")
                if len(blob) >= total:
                    return check_blob(cid, bytes(blob))
        finally:
            await stream.reset()


def _take(frame: bytes, blob: bytearray) -> int:
    message = envelope.decode(frame)
    match message.WhichOneof("body"):
        case "result_data":
            blob += message.result_data.data
            return message.result_data.total_bytes
        case "error":
            raise envelope.error_of(message.error)
        case other:
            raise ProtocolViolation(f"host sent {other} instead of a result")


def is_public_url(url: str) -> bool:
    """Whether it is HTTP at a literal public address, or at a name over TLS.

    A name could stand for one of this machine's own services; those have no certificate for it.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    try:
        return parts.scheme in ("http", "https") and ipaddress.ip_address(host).is_global
    except ValueError:
        return parts.scheme == "https" and "." in host
