"""What a renter's run reports as it happens; the CLI prints it, `--json` writes it as lines."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from nodeapp.core.ids import Address, JobId, ModelId, PeerId, TxHash
from nodeapp.wire.ipc_inference import TokenLogprob


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class RenterEvent(msgspec.Struct, frozen=True, tag_field="event", tag=_snake):
    """Base of all reports."""


class HostFound(RenterEvent, frozen=True):
    """A host was found and its offer checked against the chain."""

    peer_id: PeerId
    wallet: Address
    address: str
    model_id: ModelId
    model: str
    price_per_token: int
    source: str
    """dht, registry, gossip or memory."""
    seconds: float


class SessionPaid(RenterEvent, frozen=True):
    """The deposit is in the marketplace."""

    job_id: JobId
    deposit: int
    tx_hash: TxHash
    gas_used: int
    seconds: float


class Connected(RenterEvent, frozen=True):
    """Authenticated, session accepted by the host."""

    affordable_tokens: int
    acknowledged: int


class AnswerStarted(RenterEvent, frozen=True):
    """The host took the prompt."""

    request_id: str
    max_tokens: int
    first_token: int


class TokensReceived(RenterEvent, frozen=True, omit_defaults=True):
    """A batch; `text` belongs to exactly these tokens."""

    tokens: int
    text: str
    seconds: float
    """Since the question was first sent to the host."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token when they were asked for."""


class Reconnecting(RenterEvent, frozen=True):
    """The host went away; the answer will be taken up where it stopped."""

    reason: str
    received_tokens: int


class FailedOver(RenterEvent, frozen=True):
    """The host is given up for this answer; another one goes on after the tokens received."""

    reason: str
    host: Address
    received_tokens: int


class AnswerEnded(RenterEvent, frozen=True):
    """All tokens received and acknowledged by a signed receipt."""

    job_id: JobId
    request_id: str
    answer: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    session_tokens: int
    connect_seconds: float
    """Connection, login and session, before the question could be sent."""
    first_token_seconds: float
    """From sending the question to holding the first token on disk."""
    tokens_per_second: float
    """After the first token."""
    reconnects: int
    hosts: int = 1
    """How many hosts took part; speed and connection are those of the last one."""
    cached_tokens: int = 0
    """Of the prompt, taken from the host's KV cache."""


class SessionClosed(RenterEvent, frozen=True):
    """The host was told that nothing more comes."""

    job_id: JobId
    phase: str
    claimable: bool = True
    """False: too few tokens for a first claim, so the renter gets the deposit back by itself."""


AnyEvent = (
    HostFound
    | SessionPaid
    | Connected
    | AnswerStarted
    | TokensReceived
    | Reconnecting
    | FailedOver
    | AnswerEnded
    | SessionClosed
)
Pace = Callable[[], Awaitable[None]]
"""Returns when what was reported has been taken; nothing more is acknowledged before."""
Report = Callable[[AnyEvent], None]
