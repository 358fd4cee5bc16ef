"""Asking the root helper: one line to its socket, one line back."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import stamina

from nodeapp.core.errors import Unavailable

HELPER_SOCKET = Path("/run/fabstir-update.sock")
ANSWER_SECONDS = 3660.0
"""A little more than the helper gives its tools."""
MAX_ANSWER_BYTES = 1000
TURN_SECONDS = 15.0
"""For the helper before to end."""
Ask = Callable[..., None]
"""(verb, *arguments). Raises: Unavailable."""


def ask_helper(verb: str, *arguments: str, path: Path = HELPER_SOCKET) -> None:
    """Let it run one verb to the end.

    Raises:
        Unavailable: it does not run, or the verb failed; its words are in the system journal.
    """
    request = " ".join((verb, *arguments))
    try:
        answer = _asked(request, path)
    except OSError as error:
        raise Unavailable(
            f"update helper at {path} does not answer ({error}); is fabstir-update.socket enabled?"
        ) from error
    if answer != "done":
        raise Unavailable(f"update helper: {request}: {answer or 'ended without an answer'}")


@stamina.retry(on=ConnectionError, attempts=20, timeout=TURN_SECONDS, wait_max=1.0)
def _asked(request: str, path: Path) -> str:
    """One connection. The socket takes one at a time and drops the next unread: it may come again.

    The helper that answered before is counted until systemd has seen its end.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_SECONDS)
        line.connect(str(path))
        line.sendall(f"{request}\n".encode())
        answer = line.makefile("rb").readline(MAX_ANSWER_BYTES)
    if not answer:
        raise ConnectionResetError("it was closed without an answer")
    return answer.decode(errors="replace").strip()
