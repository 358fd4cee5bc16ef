#!/usr/bin/python3
"""Stands for the node under a unit: says what it may and what it was given, then waits. Debian's Python runs it."""

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

SOCKET = "/run/fabstir/probe.sock"
ASKED = (
    *("/", "/etc", "/var/lib", "/var/lib/fabstir", "/var/cache/fabstir", "/run/fabstir"),
    *("/mnt/backup/node", "/data/fabstir", "/models/fabstir", "/models/shared"),
)


def may_write(directory: str) -> bool:
    """Whether a file can be made there."""
    try:
        probe = Path(directory) / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError:
        return False
    return True


def status() -> dict[str, str]:
    """/proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def serve() -> None:
    """Answer the same account, as the node's processes do; user namespaces lie between the two."""
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(SOCKET)
        line.listen()
        while True:
            asker, _ = line.accept()
            asked_by = asker.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            asker.sendall(b"!" if struct.unpack("3i", asked_by)[1] == os.getuid() else b"-")


def may_list(directory: str) -> bool:
    """Whether its files can be seen."""
    try:
        list(Path(directory).iterdir())
    except OSError:
        return False
    return True


def is_answered() -> bool:
    """Whether the socket of the node can be asked."""
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(SOCKET)
        except OSError:
            return False
        return line.recv(1) == b"!"


def found() -> dict[str, object]:
    """What this process may and what it was given."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    files = sorted(Path(credentials).iterdir()) if credentials else []
    return {
        "environment": dict(os.environ),
        "credentials": {file.name: file.read_text() for file in files},
        "writable": [place for place in ASKED if may_write(place)],
        "listed": [place for place in ASKED if may_list(place)],
        "devices": sorted(file.name for file in Path("/dev").iterdir()),
        "status": status(),
    }


def helpers_answer() -> str:
    """Of the update helper, which root runs."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect("/run/fabstir-update.sock")
        line.sendall(b"nixos-back 0.1.0\n")
        return line.makefile().readline().strip()


def main() -> None:
    """As the node: into the state directory, then systemd is told. As the others: into the journal."""
    if sys.argv[1] == "metrics":
        print(json.dumps({**found(), "answered": is_answered()}), flush=True)
        signal.pause()
    elif sys.argv[1] == "health":
        more = {"answered": is_answered(), "helper": helpers_answer(), "arguments": sys.argv[1:]}
        print(json.dumps({**found(), **more}), flush=True)
    else:
        state = Path(sys.argv[sys.argv.index("--state-dir") + 1])
        (state / "probe.json").write_text(json.dumps(found()))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
            notify.send(b"READY=1")
        serve()


main()
