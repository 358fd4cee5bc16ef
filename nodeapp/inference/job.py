"""A request as the scheduler sees it: as it was handed in, while it waits, while it runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nodeapp.inference.kv import Prefix, Slot


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its context so far, and every KV cell it may ever need.

    `scope`: who may share its prefix, "" nobody. `public`: tokens at its beginning that the
    operator declared public, which anybody may share. `weight` >= 1.
    """

    job_id: int
    token_ids: tuple[int, ...]
    reserved_tokens: int
    scope: str
    public: int = 0
    renter: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job without a slot."""

    job: Job
    prefix: Prefix


@dataclass(eq=False, slots=True)
class Running:
    """A job that holds a slot. `context`: its tokens so far, chosen ones included."""

    job: Job
    prefix: Prefix
    slot: Slot
    context: list[int]
    admitted_at: int
    """The step it was."""
    draft: tuple[int, ...] = ()
    """Guesses for what follows the context."""
    is_paused: bool = False

    @property
    def remaining(self) -> int:
        """Tokens whose cells are not computed; 1 while it decodes."""
        return len(self.context) - len(self.slot.tokens)
