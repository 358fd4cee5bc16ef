"""Supervisor's event listener protocol; pure. One line of tokens, then a body of `len` bytes."""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.core.errors import ProtocolViolation

READY = b"READY\n"
DONE = b"RESULT 2\nOK"
MAX_HEADER_BYTES = 4096
MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class EventHeader:
    """What is announced; `body_bytes` follow."""

    name: str
    body_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """A program changed its state."""

    process: str
    state: str
    from_state: str
    expected: bool


def parse_header(line: bytes) -> EventHeader:
    """Read `ver:3.0 … eventname:PROCESS_STATE_EXITED len:84`.

    Raises:
        ProtocolViolation: supervisord did not write this.
    """
    tokens = _tokens(line)
    try:
        length = int(tokens["len"])
        name = tokens["eventname"]
    except (KeyError, ValueError) as error:
        raise ProtocolViolation(f"event header {line[:80]!r}") from error
    if not 0 <= length <= MAX_BODY_BYTES:
        raise ProtocolViolation(f"event body of {length} bytes")
    return EventHeader(name, length)


def parse_process_event(header: EventHeader, body: bytes) -> ProcessEvent:
    """Read `processname:chain groupname:chain from_state:RUNNING expected:0 pid:1`."""
    tokens = _tokens(body)
    return ProcessEvent(
        process=tokens.get("processname", "unknown"),
        state=header.name.removeprefix("PROCESS_STATE_"),
        from_state=tokens.get("from_state", ""),
        expected=tokens.get("expected", "1") == "1",
    )


def _tokens(line: bytes) -> dict[str, str]:
    pairs = (word.partition(":") for word in line.decode("ascii", "replace").split())
    return {key: value for key, colon, value in pairs if colon}
