"""What becomes of the scheduler's memory operations when the model cannot carry them out."""

from __future__ import annotations

import numpy as np
import pytest

from nodeapp.inference.sequence_memory import MAX_PARKED_BYTES, SequenceMemory
from nodeapp.inference.step import Copy, Forget, Park, Remove, Restore


class Recurrent:
    """Sequences as llama.cpp keeps those of a recurrent model: a part of one cannot be dropped."""

    def __init__(self):
        self.cells = {0: list(range(10)), 1: [], 2: []}
        self.size = 0

    def remove(self, sequence, start):
        if start and len(self.cells[sequence]) > start:
            return False
        del self.cells[sequence][start:]
        return True

    def copy(self, source, target, end):
        self.cells[target] = self.cells[source][:end]

    def saved_bytes(self, sequence):
        return self.size or len(self.cells[sequence])

    def save(self, sequence):
        return np.array(self.cells[sequence], np.uint8)

    def restore(self, sequence, saved):
        self.cells[sequence] = saved.tolist()
        return True


@pytest.fixture
def model():
    return Recurrent()


@pytest.fixture
def memory(model):
    return SequenceMemory(model)


def test_what_was_lost_before_it_was_parked_is_not_restored_as_if_it_were_there(memory, model):
    assert memory.apply((Remove(0, 5), Park(0, 1), Remove(0, 0))) == set()
    assert model.cells[0] == []
    assert memory.apply((Restore(1, 1, 4),)) == {1}


def test_a_copy_of_what_was_lost_is_lost_as_well(memory):
    assert memory.apply((Remove(0, 5), Copy(0, 1, 5))) == {0, 1}


def test_a_slot_that_is_filled_again_after_its_loss_is_not_lost(memory, model):
    model.cells[2] = [1, 2, 3]
    assert memory.apply((Remove(0, 5), Remove(0, 0), Copy(2, 0, 3))) == set()
    assert model.cells[0] == [1, 2, 3]


def test_forgetting_what_could_not_be_parked_is_harmless(memory):
    memory.apply((Remove(0, 5), Park(0, 1), Forget(1)))
    assert memory._parked == {}


def test_what_is_parked_is_bounded_in_bytes_too(memory, model):
    model.size = MAX_PARKED_BYTES - 5
    memory.apply((Park(0, 1),))
    model.size = 0
    memory.apply((Park(0, 2),))
    assert memory._parked[1].tolist() == list(range(10))
    model.size = MAX_PARKED_BYTES - 15
    assert memory.apply((Park(0, 3), Remove(0, 0))) == set()
    assert sorted(memory._parked) == [1, 2]
    assert memory.apply((Restore(3, 1, 4),)) == {1}
