"""What the scheduler decides and the decode thread carries out: memory operations, one batch. Pure.

Slots are llama.cpp's sequences; positions and ends are counted in tokens of one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DRAFT_TOKENS = 32
"""Guesses in one batch, of all sequences together."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Drop the slot's cells from position `start` on."""

    slot: int
    start: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Share the source's cells [0, end) with the empty target."""

    source: int
    target: int
    end: int


@dataclass(frozen=True, slots=True)
class Park:
    """Save the slot's cells under the key in the host's memory; they stay in the cache."""

    slot: int
    key: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Put cells [0, end) of what was saved into the empty slot, and forget it unless `is_kept`."""

    key: int
    slot: int
    end: int
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """What was saved under the key is not wanted any more."""

    key: int


MemoryOperation = Remove | Copy | Park | Restore | Forget


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive tokens of one sequence.

    `is_last`: the logits of the final one are wanted, and of the one before each of the `drafts`
    guesses at the end.
    """

    job_id: int
    slot: int
    start: int
    token_ids: tuple[int, ...]
    is_last: bool
    drafts: int = 0

    @property
    def is_decode(self) -> bool:
        """One sure token and its guesses: no prefill."""
        return len(self.token_ids) == 1 + self.drafts


@dataclass(frozen=True, slots=True)
class Step:
    """Memory operations in order, then one batch. `reused`: cached tokens per admitted job."""

    memory: tuple[MemoryOperation, ...]
    rows: tuple[Rows, ...]
    reused: tuple[tuple[int, int], ...] = ()
