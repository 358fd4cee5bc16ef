"""What lies on a disk, read from its bytes: the partition table, and what is not zero."""

import hashlib
import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SECTOR = 512
BLOCK = 4096
TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "esp",
    "8484680c-9521-48c6-9c11-b0720656f69e": "usr",
    "77ff5f63-e7b6-4633-acf4-1565b864c0e6": "usr-verity",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "linux-generic",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "basic-data",
}


@dataclass(frozen=True, slots=True)
class Partition:
    type: str
    uuid: uuid.UUID
    label: str
    offset: int
    size: int


def partitions(disk: BinaryIO) -> list[Partition]:
    """By the first table whose checksums hold, as firmware and kernel read it; else none."""
    end = disk.seek(0, os.SEEK_END)
    for place in (SECTOR, end - SECTOR):
        found = _table(disk, place)
        if found is not None:
            return found
    return []


def _table(disk: BinaryIO, place: int) -> list[Partition] | None:
    disk.seek(place)
    header = disk.read(SECTOR)
    (signature, _revision, size, checksum) = struct.unpack_from("<8sIII", header)
    if signature != b"EFI PART" or not 92 <= size <= SECTOR:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != checksum:
        return None
    start, count, each, entries_checksum = struct.unpack_from("<QIII", header, 72)
    disk.seek(start * SECTOR)
    entries = disk.read(count * each)
    if zlib.crc32(entries) != entries_checksum:
        return None
    found = []
    for at in range(0, len(entries), each):
        kind, unique, first, last, _flags, label = struct.unpack_from("<16s16sQQQ72s", entries, at)
        if any(kind):
            name = str(uuid.UUID(bytes_le=kind))
            found.append(
                Partition(
                    TYPES.get(name, name),
                    uuid.UUID(bytes_le=unique),
                    label.decode("utf-16-le").rstrip("\0"),
                    first * SECTOR,
                    (last - first + 1) * SECTOR,
                )
            )
    return found


def content_digest(path: Path) -> str:
    """Over every block that is not zero and its place: quick for a sparse file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        total.update(str(end).encode())
        at = 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            at -= at % BLOCK
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            file.seek(at)
            while at < hole:
                block = file.read(BLOCK)
                if block.count(0) != len(block):
                    total.update(at.to_bytes(8, "big") + block)
                at += len(block)
    return total.hexdigest()
