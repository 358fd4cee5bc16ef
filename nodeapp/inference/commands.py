"""What the asyncio side tells the decode thread; its answers are the events of wire/."""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.inference.sampling import Constraint, SamplingParameters


@dataclass(frozen=True, slots=True)
class Submit:
    """Start a request; `answer_ids` was already delivered and is gone on from."""

    number: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParameters
    stop: tuple[str, ...]
    scope: str
    accepted_at: float
    public: int = 0
    renter: str = ""
    weight: int = 1
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a request; nothing more is sent for it. Unknown numbers are ignored."""

    number: int


@dataclass(frozen=True, slots=True)
class Credit:
    """The reader took so many events."""

    number: int
    events: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread."""


Command = Submit | Cancel | Credit | Stop
