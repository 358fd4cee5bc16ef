"""CBOR of strangers: one item of numbers, bytes, text, arrays and maps, looked at before decoding.

Tags would make the decoder call decimal, email and regex code on a stranger's bytes; nesting and
item counts without a bound would cost it stack and memory. Source: RFC 8949 §3.
"""

from __future__ import annotations

import cbor2

from nodeapp.core.errors import InvalidRequest

MAX_DEPTH = 8
_TEXTS, _ARRAY, _MAP = (2, 3), 4, 5
_PLAIN_MAJOR_TYPES = frozenset((0, 2, 3, 4, 5))


def decode_plain(data: bytes, subject: str, *, max_items: int) -> object:
    """The decoded item: dict, list, bytes, str or int >= 0.

    Args:
        data: the caller has bounded its length.
        subject: what it is, for the error.
        max_items: heads allowed in all, containers and their members.

    Raises:
        InvalidRequest: not exactly one item of plain kinds inside the bounds.
    """
    _require_plain(data, subject, max_items)
    try:
        decoded: object = cbor2.loads(data)
    except (cbor2.CBORError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"{subject} is malformed: {str(error)[:200]}") from error
    return decoded


def _require_plain(data: bytes, subject: str, max_items: int) -> None:
    at, items = 0, 0
    open_counts = [1]
    while open_counts:
        if at >= len(data) or items >= max_items or len(open_counts) > MAX_DEPTH:
            raise InvalidRequest(f"{subject} is cut off, too deep or has over {max_items} items")
        major, argument, after = _head(data, at, subject)
        members = {_ARRAY: argument, _MAP: 2 * argument}.get(major, 0)
        open_counts[-1] -= 1
        open_counts.append(members)
        while open_counts and not open_counts[-1]:
            open_counts.pop()
        at = after + (argument if major in _TEXTS else 0)
        items += 1
    if at != len(data):
        raise InvalidRequest(f"{subject} has {len(data) - at} bytes after its end")


def _head(data: bytes, at: int, subject: str) -> tuple[int, int, int]:
    """Major type, argument, and where the head ends."""
    major, info = data[at] >> 5, data[at] & 31
    if major not in _PLAIN_MAJOR_TYPES or info > 27:
        raise InvalidRequest(f"{subject} has cbor head {data[at]} at byte {at}")
    width = 0 if info < 24 else 1 << (info - 24)
    after = at + 1 + width
    return major, info if width == 0 else int.from_bytes(data[at + 1 : after], "big"), after
