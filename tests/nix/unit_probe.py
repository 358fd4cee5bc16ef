#!/usr/bin/python3
"""Stands for the node under a unit: says what it may and what it was given, then waits. Debian's Python runs it."""

import json
import os
import signal
import socket
import sys
from pathlib import Path


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


def main() -> None:
    """Write probe.json into the state directory, tell systemd, wait."""
    arguments = sys.argv[1:]
    state = arguments[arguments.index("--state-dir") + 1]
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    names = sorted(file.name for file in Path(credentials).iterdir()) if credentials else []
    asked = (
        "/",
        "/etc",
        "/var/lib",
        "/mnt/backup/node",
        "/models/fabstir",
        "/models/shared",
        state,
    )
    found = {
        "arguments": arguments,
        "working_directory": str(Path.cwd()),
        "environment": dict(os.environ),
        "credentials": {name: (Path(credentials) / name).read_text() for name in names},
        "writable": [
            place for place in (*asked, "/run/fabstir", "/var/cache/fabstir") if may_write(place)
        ],
        "devices": sorted(file.name for file in Path("/dev").iterdir()),
        "status": status(),
    }
    (Path(state) / "probe.json").write_text(json.dumps(found))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        notify.send(b"READY=1")
    signal.pause()


main()
