"""What a disk image and a UKI say about themselves: partitions, hash trees, sections.

Rules of this file: reads bytes only; standard library only, since the image's build runs it.
Sources: UEFI specification (GPT), cryptsetup's DM-Verity page (on-disk format), Microsoft's PE
format.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

SECTOR = 512
CHUNK = 1 << 20
TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "esp",
    "8484680c-9521-48c6-9c11-b0720656f69e": "usr",
    "77ff5f63-e7b6-4633-acf4-1565b864c0e6": "usr-verity",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "linux-generic",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "basic-data",
}
_MAX_SECTIONS = 96


class Damaged(ValueError):
    """The bytes are not what their own headers say."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of the table; offset and size in bytes."""

    type: str
    uuid: uuid.UUID
    label: str
    offset: int
    size: int


def partitions(disk: BinaryIO) -> list[Partition]:
    """By the first table whose checksums hold, as firmware and kernel read it.

    Raises:
        Damaged: neither the table at the beginning nor the one at the end is whole.
    """
    end = disk.seek(0, os.SEEK_END)
    for place in (SECTOR, end - SECTOR):
        found = _table(disk, place)
        if found is not None:
            return found
    raise Damaged("no whole partition table")


def _table(disk: BinaryIO, place: int) -> list[Partition] | None:
    disk.seek(place)
    header = disk.read(SECTOR)
    signature, _revision, size, checksum = struct.unpack_from("<8sIII", header)
    if signature != b"EFI PART" or not 92 <= size <= SECTOR:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != checksum:
        return None
    start, count, each, entries_checksum = struct.unpack_from("<QIII", header, 72)
    if count * each > CHUNK or each < 128:
        return None
    disk.seek(start * SECTOR)
    entries = disk.read(count * each)
    if zlib.crc32(entries) != entries_checksum:
        return None
    return [
        _entry(entries[at : at + each])
        for at in range(0, count * each, each)
        if any(entries[at : at + 16])
    ]


def _entry(entry: bytes) -> Partition:
    kind, unique, first, last, _flags, label = struct.unpack_from("<16s16sQQQ72s", entry)
    name = str(uuid.UUID(bytes_le=kind))
    return Partition(
        TYPES.get(name, name),
        uuid.UUID(bytes_le=unique),
        label.decode("utf-16-le").rstrip("\0"),
        first * SECTOR,
        (last - first + 1) * SECTOR,
    )


@dataclass(frozen=True, slots=True)
class Superblock:
    """Head of a partition of hashes."""

    block: int
    """Bytes in a block of data and of hashes."""
    data_blocks: int
    salt: bytes

    @property
    def data_bytes(self) -> int:
        """What is covered; the partition may be larger."""
        return self.block * self.data_blocks

    @property
    def levels(self) -> tuple[int, ...]:
        """Blocks of hashes in each level, the lowest first."""
        counts, below = [], self.data_blocks
        while below > 1:
            below = -(-below * 32 // self.block)
            counts.append(below)
        return tuple(counts)

    @property
    def hash_bytes(self) -> int:
        """The superblock's own block and all levels."""
        return self.block * (1 + sum(self.levels))


def superblock(file: BinaryIO, offset: int = 0) -> Superblock:
    """Of the hashes that begin at `offset`.

    Raises:
        Damaged: no superblock, or of another kind than systemd-repart makes.
    """
    file.seek(offset)
    head = file.read(512)
    if len(head) != 512 or head[:8] != b"verity\0\0":
        raise Damaged("no verity superblock")
    version, kind = struct.unpack_from("<II", head, 8)
    algorithm = head[32:64].rstrip(b"\0")
    data_block, hash_block, blocks, salt_size = struct.unpack_from("<IIQH", head, 64)
    plain = (version, kind, algorithm) == (1, 1, b"sha256") and data_block == hash_block
    if not plain or data_block not in (512, 1024, 2048, 4096) or not blocks or salt_size > 256:
        raise Damaged(f"verity superblock of another kind: {version}, {kind}, {algorithm!r}")
    return Superblock(data_block, blocks, head[88 : 88 + salt_size])


def root_hash(disk: BinaryIO, store_offset: int, hashes_offset: int, end: int | None = None) -> str:
    """Of a store, after every block of it and of its hashes was compared.

    Args:
        disk: holds both.
        store_offset: where the data begins.
        hashes_offset: where the superblock is.
        end: size of the partition of data, when that is to be held against the superblock.

    Raises:
        Damaged: a stored hash is not that of what it covers.
    """
    head = superblock(disk, hashes_offset)
    if end is not None and head.data_bytes > end:
        raise Damaged(f"{head.data_bytes} bytes are hashed, the partition has {end}")
    # On disk the topmost level comes first.
    level_offset = hashes_offset + head.hash_bytes
    blocks = _read(disk, store_offset, head.data_blocks, head.block)
    for count in head.levels:
        level_offset -= count * head.block
        level = b"".join(_hashed(head, blocks))
        level += bytes(count * head.block - len(level))
        disk.seek(level_offset)
        if disk.read(len(level)) != level:
            raise Damaged("a block of the store is not what its hash says")
        blocks = (level[at : at + head.block] for at in range(0, len(level), head.block))
    (top,) = _hashed(head, blocks)
    return top.hex()


def _read(file: BinaryIO, offset: int, count: int, block: int) -> Iterator[bytes]:
    for at in range(0, count * block, CHUNK):
        # Asked for by place each time: the caller reads elsewhere between two levels.
        file.seek(offset + at)
        piece = file.read(min(CHUNK, count * block - at))
        for start in range(0, len(piece), block):
            yield piece[start : start + block]


def _hashed(head: Superblock, blocks: Iterator[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield hashlib.sha256(head.salt + block).digest()


def section(image: bytes, name: str) -> bytes:
    """Content of a section of a PE file, as `.cmdline` of a UKI.

    Raises:
        Damaged: no PE file, or no such section.
    """
    try:
        (at,) = struct.unpack_from("<I", image, 0x3C)
        if image[:2] != b"MZ" or image[at : at + 4] != b"PE\0\0":
            raise Damaged("not a PE file")
        (count,) = struct.unpack_from("<H", image, at + 6)
        (optional,) = struct.unpack_from("<H", image, at + 20)
        for index in range(min(count, _MAX_SECTIONS)):
            start = at + 24 + optional + 40 * index
            label, virtual, _address, raw, offset = struct.unpack_from("<8sIIII", image, start)
            if label.rstrip(b"\0").decode("ascii", "replace") == name:
                body = image[offset : offset + min(virtual, raw)]
                if len(body) != min(virtual, raw):
                    raise Damaged(f"section {name} is cut short")
                return body
    except struct.error as error:
        raise Damaged(f"not a whole PE file: {error}") from error
    raise Damaged(f"no section {name}")


def usrhash(uki: bytes) -> str:
    """The root hash that a UKI's kernel is told to boot.

    Raises:
        Damaged: none, or no UKI.
    """
    words = section(uki, ".cmdline").rstrip(b"\0\n").decode("utf-8", "replace").split()
    found = [word.removeprefix("usrhash=") for word in words if word.startswith("usrhash=")]
    if len(found) != 1 or len(found[0]) != 64:
        raise Damaged(f"the UKI's command line holds {len(found)} usrhash=")
    return found[0]


@dataclass(frozen=True, slots=True)
class Slot:
    """A store and the hashes of it."""

    store: Partition
    hashes: Partition


def slot_of(found: list[Partition], root: str) -> Slot:
    """The partitions a kernel with this usrhash= takes: their identifiers are its halves.

    Raises:
        Damaged: not both of them are there.
    """
    store, hashes = uuid.UUID(root[:32]), uuid.UUID(root[32:])
    stores = [one for one in found if one.type == "usr" and one.uuid == store]
    trees = [one for one in found if one.type == "usr-verity" and one.uuid == hashes]
    if not stores or not trees:
        raise Damaged(f"no partitions for usrhash={root}")
    return Slot(stores[0], trees[0])


def check_bootable(disk: BinaryIO, uki: bytes) -> Slot:
    """That a UKI finds its store on this disk, whole to the last block.

    Raises:
        Damaged: why it would not boot.
    """
    root = usrhash(uki)
    slot = slot_of(partitions(disk), root)
    found = root_hash(disk, slot.store.offset, slot.hashes.offset, slot.store.size)
    if found != root:
        raise Damaged(f"the store has root hash {found}, the UKI wants {root}")
    return slot
