"""The boot entries of the flashed image: UKIs on the ESP, and whether one finds its slot.

Rules of this file: part of root's helper, so only what is named here is touched; nothing is
written but the removal of an entry, and never the running release's.
Sources: systemd's Boot Loader Specification (counters in the name), Microsoft's PE format,
systemd-veritysetup-generator (usrhash=: its halves are the identifiers of the two partitions).
"""

from __future__ import annotations

import os
import re
import struct
import uuid
from pathlib import Path

from nodeapp.core.errors import InvalidRequest

ENTRIES = Path("EFI/Linux")
_NAME = re.compile(r"fabstir-node_(\d+\.\d+\.\d+(?:-rc\.\d+)?)(?:\+\d+(?:-\d+)?)?\.efi", re.ASCII)
_MAX_SECTIONS = 96
_MAX_HEADERS = 1 << 16
_MAX_COMMAND_LINE = 1 << 16


def version_of(name: str) -> str:
    """Which release an entry starts; "" when it is none of this project's."""
    found = _NAME.fullmatch(name)
    return found[1] if found else ""


def others(names: list[str], running: str) -> list[str]:
    """The entries of every release but the running one."""
    return [name for name in names if version_of(name) not in ("", running)]


def forget_others(boot: Path, running: str) -> None:
    """Remove them for good: the slot they start from is about to be overwritten.

    Raises:
        InvalidRequest: the running release is on trial: the other one is needed.
        OSError: they cannot be removed; the slot must be left alone then.
    """
    directory = boot / ENTRIES
    names = _names(directory)
    if any(version_of(name) == running and "+" in name for name in names):
        raise InvalidRequest(f"{running} runs on trial; until it is blessed the other slot stays")
    for name in others(names, running):
        (directory / name).unlink()
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_startable(boot: Path, partitions: Path, version: str) -> None:
    """That a release has an entry, and this one its two partitions.

    Args:
        boot: where the ESP is mounted.
        partitions: /dev/disk/by-partuuid, where the initrd looks as well.
        version: of the release.

    Raises:
        InvalidRequest: it would not start, and says why.
    """
    directory = boot / ENTRIES
    names = [name for name in _names(directory) if version_of(name) == version]
    if not names:
        raise InvalidRequest(f"{version} has no boot entry in {directory}: it was overwritten")
    for name in names:
        root = _usrhash(directory / name)
        lacking = [
            half for half in (root[:32], root[32:]) if not (partitions / _identifier(half)).exists()
        ]
        if lacking:
            raise InvalidRequest(f"{name} has lost its slot: it was overwritten by another release")


def _identifier(half: str) -> str:
    return str(uuid.UUID(half))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []


def _usrhash(uki: Path) -> str:
    """On the kernel's command line of a UKI.

    Raises:
        InvalidRequest: none, or not one; or no UKI.
    """
    try:
        words = _command_line(uki).split()
    except (struct.error, ValueError) as error:
        raise InvalidRequest(f"{uki} is no whole UKI: {error}") from error
    found = [word.removeprefix("usrhash=") for word in words if word.startswith("usrhash=")]
    if len(found) != 1 or not re.fullmatch("[0-9a-f]{64}", found[0]):
        raise InvalidRequest(f"{uki} names {len(found)} stores on its command line")
    return found[0]


def _command_line(uki: Path) -> str:
    with uki.open("rb") as file:
        head = file.read(_MAX_HEADERS)
        (at,) = struct.unpack_from("<I", head, 0x3C)
        if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
            raise ValueError("not a PE file")
        (count,) = struct.unpack_from("<H", head, at + 6)
        (optional,) = struct.unpack_from("<H", head, at + 20)
        for index in range(min(count, _MAX_SECTIONS)):
            start = at + 24 + optional + 40 * index
            label, virtual, _address, raw, offset = struct.unpack_from("<8sIIII", head, start)
            if label.rstrip(b"\0") == b".cmdline":
                file.seek(offset)
                body = file.read(min(virtual, raw, _MAX_COMMAND_LINE))
                return body.rstrip(b"\0\n").decode("utf-8", "replace")
    raise ValueError("it has no section .cmdline")
