"""Names in configured bootstrap addresses: /dns4, /dns6, /dns and /dnsaddr to literal addresses.

For addresses of the settings only: a name in a stranger's record is never looked up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import dns.asyncresolver
import dns.exception

from nodeapp.core.errors import InvalidRequest, Unavailable

LOOKUP_SECONDS: Final = 5.0
MAX_ADDRESSES: Final = 16
"""Of one name."""
_FAMILIES: Final = {
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}
TextRecords = Callable[[str], Awaitable[Sequence[str]]]


async def text_records(name: str) -> Sequence[str]:
    """TXT records of a name, each joined to one text.

    Raises:
        Unavailable: no answer, or there are none.
    """
    try:
        # Read anew: the name servers come with the network, and are others after it changed.
        resolver = dns.asyncresolver.Resolver()
        found = await resolver.resolve(name, "TXT", lifetime=LOOKUP_SECONDS)
    except dns.exception.DNSException as error:
        raise Unavailable(f"dns has no txt records of {name}: {type(error).__name__}") from error
    return [b"".join(record.strings).decode(errors="replace") for record in found]


async def resolved(address: str, records: TextRecords = text_records) -> tuple[str, ...]:
    """Literal addresses for one; an address without a name is returned as it is.

    Raises:
        InvalidRequest: a name in a form that is not one of these.
        Unavailable: the name has no address now.
    """
    parts = address.split("/")
    kind = parts[1] if len(parts) > 2 else ""
    if kind == "dnsaddr":
        return await _by_text(parts[2], "/".join(parts[3:]), records)
    if kind not in _FAMILIES:
        return (address,)
    if len(parts) < 5 or not parts[4].isdigit():
        raise InvalidRequest(f"address {address[:200]!r} has no port")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            found = await loop.getaddrinfo(
                parts[2], None, family=_FAMILIES[kind], type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"name {parts[2]} has no address now") from error
    rest = "/".join(parts[3:])
    literal = {
        f"/{'ip4' if family == socket.AF_INET else 'ip6'}/{end[0]}/{rest}": None
        for family, _type, _protocol, _name, end in found
    }
    return tuple(literal)[:MAX_ADDRESSES]


async def _by_text(name: str, suffix: str, records: TextRecords) -> tuple[str, ...]:
    """`_dnsaddr.<name>` holds dnsaddr=<multiaddr> texts; a suffix must be the end of one."""
    found = [
        text.removeprefix("dnsaddr=")
        for text in await records(f"_dnsaddr.{name}")
        if text.startswith("dnsaddr=/") and text.endswith(f"/{suffix}" if suffix else "")
    ]
    literal: list[str] = []
    for address in found[:MAX_ADDRESSES]:
        # One level only: a text that names another dnsaddr is left out.
        if not address.startswith("/dnsaddr/"):
            literal += await resolved(address, records)
    if not literal:
        raise Unavailable(f"dns names no address for /dnsaddr/{name}")
    return tuple(literal)[:MAX_ADDRESSES]
