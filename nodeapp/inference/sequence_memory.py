"""SequenceMemory: carries out what the scheduler decides about KV cells, and keeps what is parked.

For the thread that owns the context. Some models cannot drop a part of a sequence, and what is
parked may find no room: such a sequence is lost, and the scheduler is told to compute it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from nodeapp.inference.llama import LlamaModel, Saved
from nodeapp.inference.step import Copy, Forget, MemoryOperation, Park, Remove, Restore

MAX_PARKED_BYTES = 1 << 30
"""Besides the scheduler's limit in tokens: a recurrent model's state is large however short."""


class SequenceMemory:
    """The cells of a model's sequences, in its context and parked in the host's memory."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._parked: dict[int, Saved] = {}
        """The bytes of what the scheduler has parked, by key."""
        self.can_take_back = True
        """False once the model could not drop a sequence's last cells."""

    def apply(self, operations: Iterable[MemoryOperation]) -> set[int]:
        """Carry them out in order; returns the slots that are empty now and should not be."""
        lost: set[int] = set()
        for operation in operations:
            self._carry_out(operation, lost)
        return lost

    def _carry_out(self, operation: MemoryOperation, lost: set[int]) -> None:
        """What later operations take from a lost slot is lost as well."""
        match operation:
            case Copy(source, target, end):
                if source in lost:
                    lost.add(target)
                else:
                    self._model.copy(source, target, end)
            case Remove(slot, start):
                self._remove(slot, start, lost)
            case Park(slot, key):
                if slot not in lost:
                    self._park(slot, key)
            case Restore():
                self._restore(operation, lost)
            case Forget(key):
                self._parked.pop(key, None)
            case _:
                assert_never(operation)

    def _remove(self, slot: int, start: int, lost: set[int]) -> None:
        if start == 0:
            lost.discard(slot)  # empty, as it should be
        if not self._model.remove(slot, start):
            self.can_take_back = False
            self._model.remove(slot, 0)
            lost.add(slot)

    def _park(self, slot: int, key: int) -> None:
        """What finds no room is computed again should it be wanted."""
        held = sum(saved.nbytes for saved in self._parked.values())
        if held + self._model.saved_bytes(slot) <= MAX_PARKED_BYTES:
            self._parked[key] = self._model.save(slot)

    def _restore(self, wanted: Restore, lost: set[int]) -> None:
        slot, saved = wanted.slot, self._parked.get(wanted.key)
        if not wanted.is_kept:
            self._parked.pop(wanted.key, None)
        is_there = saved is not None and self._model.restore(slot, saved)
        if not (is_there and self._model.remove(slot, wanted.end)):
            self._model.remove(slot, 0)
            lost.add(slot)
