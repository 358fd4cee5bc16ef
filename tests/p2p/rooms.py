"""Network namespaces joined by cables, without any other way in or out; each a room of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nodeapp.network.settings import PROCESS_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]


class Rooms:
    """Made by `rooms`; numbered from 0."""

    def __init__(self, stack: ExitStack, names: Sequence[str]) -> None:
        self._stack, self._names = stack, names
        self._cables = 0

    def cable(self, one: int, other: int, network: str) -> None:
        """Join two rooms: `network`.1 and `network`.2."""
        ends = [f"fb{os.getpid() % 100_000}c{self._cables}{side}" for side in "ab"]
        self._cables += 1
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for place, end, address in ((one, ends[0], 1), (other, ends[1], 2)):
            ip("link", "set", end, "netns", self._names[place])
            ip("-n", self._names[place], "address", "add", f"{network}.{address}/24", "dev", end)
            ip("-n", self._names[place], "link", "set", end, "up")

    def route(self, room: int, network: str, gateway: str) -> None:
        """Where a room sends what is for `network`.0/24."""
        ip("-n", self._names[room], "route", "add", f"{network}.0/24", "via", gateway)

    def can_reach(self, room: int, address: str, port: int) -> bool:
        """Whether a TCP connection comes about within a second."""
        code = f"import socket; socket.create_connection(('{address}', {port}), 1)"
        words = ["ip", "netns", "exec", self._names[room], sys.executable, "-c", code]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def start(self, room: int, *words: object) -> subprocess.Popen[str]:
        """Run a module of ours there; it ends with the test."""
        command = ["ip", "netns", "exec", self._names[room], sys.executable, "-m"]
        child = subprocess.Popen(
            [*command, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **PROCESS_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(child.wait, 20)
        self._stack.callback(child.terminate)
        return child


def says(child: subprocess.Popen[str], key: str) -> dict[str, object]:
    """The next line of JSON with this key; logs are passed over."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{") and key in (said := json.loads(line)):
            return dict(said)
    raise AssertionError(f"{child.args} ended without {key}")


@contextmanager
def rooms(count: int) -> Iterator[Rooms]:
    """Skips the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    names = [f"fbroom{os.getpid()}n{number}" for number in range(count)]
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace: {error.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        with ExitStack() as children:
            yield Rooms(children, names)


def ip(*words: str) -> None:
    """iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
