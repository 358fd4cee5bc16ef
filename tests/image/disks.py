"""What of a disk image is not zero, and the files on its boot partition."""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096


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


END_OF_CHAIN = 0x0FFFFFF8
DIRECTORY, LONG_NAME = 0x10, 0x0F


class Fat:
    """A FAT32 as a boot loader reads it: read-only, long names; a broken chain ends the file.

    Source: Microsoft's FAT specification.
    """

    def __init__(self, disk: BinaryIO, offset: int) -> None:
        self._disk, self._offset = disk, offset
        head = self._read(0, 512)
        self._sector, per_cluster, reserved, copies = struct.unpack_from("<HBHB", head, 11)
        (size,) = struct.unpack_from("<I", head, 36)
        (self._root,) = struct.unpack_from("<I", head, 44)
        self._cluster = self._sector * per_cluster
        self._data = (reserved + copies * size) * self._sector
        self._table = self._read(reserved * self._sector, size * self._sector)

    def _read(self, at: int, size: int) -> bytes:
        self._disk.seek(self._offset + at)
        return self._disk.read(size)

    def _chain(self, cluster: int, most: int) -> bytes:
        body = bytearray()
        while 2 <= cluster < END_OF_CHAIN and len(body) < most:
            body += self._read(self._data + (cluster - 2) * self._cluster, self._cluster)
            if 4 * cluster + 4 > len(self._table):
                break
            cluster = struct.unpack_from("<I", self._table, 4 * cluster)[0] & 0x0FFFFFFF
        return bytes(body)

    def _entries(self, cluster: int) -> Iterator[tuple[str, int, int, int]]:
        body, long = self._chain(cluster, 1 << 20), ""
        for at in range(0, len(body), 32):
            entry = body[at : at + 32]
            if entry[0] == 0:
                return
            if entry[0] == 0xE5:
                long = ""
            elif entry[11] == LONG_NAME:
                part = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", "replace")
                long = part.split("\0")[0] + long
            else:
                short = entry[:8].decode("latin-1").rstrip() + "." + entry[8:11].decode("latin-1")
                high, low, size = struct.unpack("<H4xHI", entry[20:32])
                yield long or short.rstrip(". "), entry[11], high << 16 | low, size
                long = ""

    def files(self, directory: str) -> dict[str, bytes]:
        """Names and contents of the files of a directory; none when it is not there."""
        cluster = self._root
        for name in directory.strip("/").split("/"):
            found = [
                one
                for label, kind, one, _ in self._entries(cluster)
                if label.lower() == name.lower() and kind & DIRECTORY
            ]
            if not found:
                return {}
            cluster = found[0]
        return {
            label: self._chain(first, size)[:size]
            for label, kind, first, size in self._entries(cluster)
            if not kind & DIRECTORY
        }
