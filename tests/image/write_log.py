"""Every write that reached a disk, in order, and the disk as a power cut leaves it.

QEMU's storage daemon serves the disk as a file (FUSE) and logs what is written to it in the format
of the kernel's dm-log-writes; a loop device over that file is the machine's disk. What reaches the
log is what reached the disk: caches above are the kernel's own, a flush is a flush.
"""

import contextlib
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from appliance.disk_image import Damaged, partitions, root_hash, slot_of, usrhash
from tests.image.flashed import entries
from tests.image.releases import Factory

MAGIC = 0x6A736677736872
FLUSH, DISCARD = 1, 4
SECTOR = 512
PIECE = 4096
SMALL = 64 << 10
"""A write up to this size (partition tables, directories) may be cut at any sector."""
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Write:
    """One entry; a flush comes after all that was written before it."""

    offset: int
    data: bytes
    flush: bool

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """What a cut may separate."""
        size = SECTOR if len(self.data) <= SMALL else PIECE
        for at in range(0, len(self.data), size):
            yield self.offset + at, self.data[at : at + size]


@contextlib.contextmanager
def logged(factory: Factory, disk: str, log: str) -> Iterator[str]:
    """Serve a disk below the factory's directory; yields the served file's name there."""
    base, name = factory.base, f"{disk}.served"
    (base / name).touch()
    (base / log).write_bytes(b"")
    daemon = subprocess.Popen(
        factory.inside.command(
            "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=disk,filename=/job/{disk},discard=unmap",
            "--blockdev", f"driver=file,node-name=log,filename=/job/{log}",
            "--blockdev", "driver=blklogwrites,node-name=logged,file=disk,log=log",
            "--export", "type=fuse,id=served,node-name=logged,mountpoint="
            f"/job/{name},writable=on",
            "--chardev", "stdio,id=control", "--monitor", "chardev=control",
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    # Options are carried out in their order: the control channel, the last one, greets when all is there.
    watch = threading.Timer(START_SECONDS, daemon.kill)
    watch.start()
    greeting = daemon.stdout.readline() if daemon.stdout else b""
    watch.cancel()
    if b"QMP" not in greeting:
        daemon.kill()
        raise AssertionError(f"qemu-storage-daemon: {greeting!r}")
    try:
        yield name
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)


def read_log(path: Path) -> list[Write]:
    """Source: Documentation/admin-guide/device-mapper/log-writes.rst."""
    found = []
    with path.open("rb") as file:
        magic, version, count, sector = struct.unpack("<QQQI", file.read(28))
        assert (magic, version) == (MAGIC, 1)
        at = sector
        for _ in range(count):
            file.seek(at)
            start, sectors, flags, _length = struct.unpack("<QQQQ", file.read(32))
            at += sector
            size = sectors * sector
            if flags & DISCARD:
                data = bytes(size)
            else:
                file.seek(at)
                data = file.read(size)
                at += size
            found.append(Write(start * sector, data, bool(flags & FLUSH)))
    return found


@dataclass
class Rebuilt:
    """A disk on which a log is played again, and what boots on it at any moment."""

    path: Path
    file: BinaryIO
    _kernels: dict[str, bytes] | None = None
    _whole: dict[str, bool] = field(default_factory=dict)
    _extents: list[tuple[int, int, str]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        """Apply, and forget what was known of that place."""
        self.file.seek(offset)
        self.file.write(data)
        self.file.flush()
        for start, end, what in self._extents:
            if offset < end and offset + len(data) > start:
                if what == "esp":
                    self._kernels = None
                else:
                    self._whole.pop(what, None)

    def read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def kernels(self) -> dict[str, bytes]:
        """The UKIs on the ESP."""
        if self._kernels is None:
            self._kernels = entries(self.path)
        return self._kernels

    def bootable(self) -> set[str]:
        """Names of the UKIs that find their store whole."""
        found = partitions(self.file)
        (esp,) = (one for one in found if one.type == "esp")
        self._extents = [(esp.offset, esp.offset + esp.size, "esp")]
        named = set()
        for name, kernel in self.kernels().items():
            with contextlib.suppress(Damaged):
                root = usrhash(kernel)
                slot = slot_of(found, root)
                for one in (slot.store, slot.hashes):
                    self._extents.append((one.offset, one.offset + one.size, root))
                if root not in self._whole:
                    self._whole[root] = self._check(root, slot.store.offset, slot.hashes.offset)
                if self._whole[root]:
                    named.add(name)
        return named

    def _check(self, root: str, store: int, hashes: int) -> bool:
        try:
            return root_hash(self.file, store, hashes) == root
        except Damaged:
            return False


@contextlib.contextmanager
def rebuilt(disk: Path) -> Iterator[Rebuilt]:
    with disk.open("r+b") as file:
        yield Rebuilt(disk, file)


def epochs(log: Sequence[Write]) -> list[list[tuple[int, bytes]]]:
    """Pieces between two flushes: any of those of the last epoch may be lost."""
    found: list[list[tuple[int, bytes]]] = [[]]
    for write in log:
        found[-1] += write.pieces()
        if write.flush and found[-1]:
            found.append([])
    return [one for one in found if one]
