"""The three kinds of failure (and nothing else is raised on purpose).

NodeError
├── Rejected      the asker is told, with a stable code; nothing is retried
│   ├── InvalidRequest   malformed, out of bounds, unknown name
│   ├── Unauthorised     identity missing or signature wrong
│   ├── PaymentRequired  no session, deposit used up, price too low
│   ├── NotFound         unknown model, session, blob
│   ├── TooLarge         prompt or body over a stated limit
│   ├── Busy             limit reached; carries retry_after_seconds
│   └── ProtocolViolation the peer broke the wire format
├── Unavailable   a dependency is down; retried with backoff inside the deadline
└── Corrupt       our own state cannot be trusted; the process ends and replay restores it
"""

from __future__ import annotations

from typing import ClassVar


class NodeError(Exception):
    """Base of every deliberate error; `code` is stable on every wire, `param` names a field."""

    code: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, retry_after_seconds: float | None = None, param: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.param = param


class Rejected(NodeError):
    """The asker is told, with a code; nothing is retried."""

    code = "rejected"


class InvalidRequest(Rejected):
    """Malformed, out of bounds, or an unknown name."""

    code = "invalid_request"


class Unauthorised(Rejected):
    """Identity missing or signature wrong."""

    code = "unauthorised"


class PaymentRequired(Rejected):
    """No usable paid session: unknown, closed, used up or priced too low."""

    code = "payment_required"


class NotFound(Rejected):
    """The named model, session or blob does not exist here."""

    code = "not_found"


class TooLarge(Rejected):
    """Input over a stated limit (context length, body size)."""

    code = "too_large"


class Busy(Rejected):
    """A limit is reached; try again after `retry_after_seconds`."""

    code = "busy"


class ProtocolViolation(Rejected):
    """The peer broke the wire format; the connection is dropped."""

    code = "protocol_violation"


class Unavailable(NodeError):
    """A dependency is down or the deadline passed; retried inside the deadline."""

    code = "unavailable"


class Corrupt(NodeError):
    """Our own state cannot be trusted: the process ends, replay restores it."""

    code = "corrupt"


BY_CODE: dict[str, type[NodeError]] = {
    kind.code: kind
    for kind in (
        Rejected,
        InvalidRequest,
        Unauthorised,
        PaymentRequired,
        NotFound,
        TooLarge,
        Busy,
        ProtocolViolation,
        Unavailable,
        Corrupt,
    )
}


def from_code(code: str, message: str, retry_after_seconds: float | None = None) -> NodeError:
    """Rebuild an error that crossed a process or peer boundary; unknown codes are Rejected."""
    return BY_CODE.get(code, Rejected)(message, retry_after_seconds=retry_after_seconds)


def leaves(group: BaseExceptionGroup[NodeError]) -> list[NodeError]:
    """The errors of a TaskGroup's exception group, flattened, first one first."""
    found: list[NodeError] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
