"""Network namespaces whose packets pass through a slow, lossy switch; programs forked into them.

Rules: root, `ip` and /dev/net/tun are needed. A namespace has no name: it lives as long as a program
in it or the file descriptor here, so nothing can be left behind. The switch is a process of ours that
holds one TUN device of each namespace (no netem: not every kernel has its module); it delays every
packet, loses some by a seeded draw and can keep groups of addresses apart. Programs are forked from
the caller, which has imported libp2p once and has neither threads nor a loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import multiprocessing
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from nodeapp.service.lifecycle import die_with_parent

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
CLONE_NEWNET = 0x40000000
QUEUE_PACKETS = 20_000
"""Under way at a time; more are lost, as in a router whose queue is full."""
_forks = multiprocessing.get_context("fork")
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no lab on this machine, "" when there can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if shutil.which("ip") is None:
        return "needs the ip command (iproute2)"
    return "" if TUN.exists() else f"needs {TUN}"


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace with one address."""

    address: str
    descriptor: int


class Child:
    """A forked program with a pipe to it; its output goes to a file."""

    def __init__(
        self, place: Place | None, log: Path, work: Callable[..., None], *arguments: object
    ) -> None:
        self.pipe, theirs = _forks.Pipe()
        self.log = log
        self.process = _forks.Process(
            target=_run, args=(place, log, work, theirs, arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def tell(self, message: object) -> None:
        self.pipe.send(message)

    def heard(self, seconds: float) -> Any:
        """What it says next."""
        if not self.pipe.poll(seconds):
            raise TimeoutError(f"{self.log.stem} says nothing for {seconds:g} s; see its log")
        return self.pipe.recv()

    def send_signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.pid, number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Signal and reap; SIGKILL follows when the signal is not obeyed."""
        self.send_signal(number)
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(10)
        self.pipe.close()

    def rss_mib(self) -> float:
        """Memory of its own: what it does not share with the program it was forked from."""
        words = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in words if line.startswith("Private_"))
        return private / 1024


def _run(
    place: Place | None,
    log: Path,
    work: Callable[..., None],
    pipe: Connection,
    arguments: tuple[object, ...],
) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if place is not None:
        enter(place.descriptor)
    work(pipe, *arguments)


def enter(descriptor: int) -> None:
    """Move this process (one thread) into a namespace."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def new_namespace() -> int:
    """A descriptor of a new, empty network namespace; the caller stays where it is."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        made = os.open("/proc/self/ns/net", os.O_RDONLY)
        enter(home)
    finally:
        os.close(home)
    return made


@dataclass(slots=True)
class Lab:
    """All places and programs; `with` ends every one of them."""

    directory: Path
    delay_seconds: float
    loss: float
    seed: int
    places: dict[str, Place] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    switch: Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        for child in reversed(self.children):
            with contextlib.suppress(OSError, ValueError):
                child.end()
        for place in self.places.values():
            os.close(place.descriptor)

    def add(self, *addresses: str) -> None:
        """Places for these addresses; before `connect`."""
        for address in addresses:
            self.places[address] = Place(address, new_namespace())

    def connect(self) -> None:
        """Start the switch between all places."""
        places = tuple(self.places.values())
        self.switch = self.start(
            None, "switch", _switch, places, self.delay_seconds, self.loss, self.seed
        )
        assert self.switch.heard(60) == "ready"

    def start(
        self, address: str | None, name: str, work: Callable[..., None], *arguments: object
    ) -> Child:
        """Fork a program into a place; None: where we are."""
        place = self.places[address] if address is not None else None
        child = Child(place, self.directory / f"{name}.log", work, *arguments)
        self.children.append(child)
        return child

    def part(self, groups: dict[str, int]) -> None:
        """Packets between addresses of different groups are lost from now on; {} heals."""
        assert self.switch is not None
        self.switch.tell(groups)
        assert self.switch.heard(10) == "done"

    def counts(self) -> dict[str, int]:
        """Packets so far."""
        assert self.switch is not None
        self.switch.tell(None)
        found: dict[str, int] = self.switch.heard(10)
        return found


def _tun(place: Place) -> int:
    """A device with the place's address and every route; the descriptor is the wire."""
    enter(place.descriptor)
    wire = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(wire, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN_WITHOUT_HEADER))
    for words in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{place.address}/32", "dev", "tun0"),
        ("link", "set", "tun0", "up", "txqueuelen", "2000"),
        ("route", "add", "default", "dev", "tun0"),
    ):
        subprocess.run(("ip", *words), check=True)
    return wire


def _switch(
    pipe: Connection, places: tuple[Place, ...], delay: float, loss: float, seed: int
) -> None:
    with contextlib.suppress(OSError):
        os.nice(-10)  # a late switch would be read as a slow node
    wires = {bytes(map(int, place.address.split("."))): _tun(place) for place in places}
    rng, groups = random.Random(seed), dict[bytes, int]()
    under_way: list[tuple[float, int, int, bytes]] = []
    number = lost = parted = late = 0
    poller = select.epoll()
    for wire in (*wires.values(), pipe.fileno()):
        poller.register(wire, select.EPOLLIN)
    pipe.send("ready")
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 1.0
        for ready, _event in poller.poll(wait):
            if ready == pipe.fileno():
                asked = pipe.recv()
                if asked is None:
                    pipe.send({"packets": number, "lost": lost, "parted": parted, "late": late})
                else:
                    groups = {bytes(map(int, a.split("."))): g for a, g in asked.items()}
                    pipe.send("done")
                continue
            for packet in _read(ready):
                source, target = packet[12:16], packet[16:20]
                if packet[0] >> 4 != 4 or target not in wires:
                    continue
                number += 1
                if groups.get(source, 0) != groups.get(target, 0):
                    parted += 1
                elif rng.random() < loss or len(under_way) >= QUEUE_PACKETS:
                    lost += 1
                else:
                    due = time.monotonic() + delay
                    heapq.heappush(under_way, (due, number, wires[target], packet))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            due, _number, wire, packet = heapq.heappop(under_way)
            late += now - due > 0.02
            with contextlib.suppress(BlockingIOError):
                os.write(wire, packet)


def _read(wire: int) -> list[bytes]:
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(found) < 64:
            found.append(os.read(wire, 65536))
    return found


if __name__ == "__main__":
    sys.exit(missing())
