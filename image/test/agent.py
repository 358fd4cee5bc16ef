"""In the machine under test: runs what the campaign asks over a virtio port, one at a time.

A line of JSON in, {"id": n, "command": [...], "seconds": n}; a line of JSON with that id out.
It is part of
test images only.
"""

import json
import subprocess
import time
from pathlib import Path

PORT = Path("/dev/virtio-ports/fabstir.test")
MAX_OUTPUT = 200_000


def answer(line: bytes) -> dict[str, object]:
    """Run one request."""
    number = 0
    try:
        asked = json.loads(line)
        number = asked["id"]
        done = subprocess.run(
            asked["command"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=asked["seconds"],
            check=False,
        )
    except (ValueError, KeyError, OSError, subprocess.TimeoutExpired) as error:
        return {"id": number, "code": 255, "out": "", "err": str(error)}
    return {
        "id": number,
        "code": done.returncode,
        "out": done.stdout[-MAX_OUTPUT:].decode(errors="replace"),
        "err": done.stderr[-MAX_OUTPUT:].decode(errors="replace"),
    }


def main() -> None:
    """Until the machine goes down."""
    with PORT.open("r+b", buffering=0) as port:
        held = b""
        while True:
            piece = port.read(4096)
            if not piece:
                time.sleep(0.5)  # nobody is connected: the port reads as ended
                continue
            held += piece
            while b"\n" in held:
                line, _, held = held.partition(b"\n")
                if not line:
                    continue
                reply = json.dumps(answer(line)).encode() + b"\n"
                while reply:
                    reply = reply[port.write(reply) :]


if __name__ == "__main__":
    main()
