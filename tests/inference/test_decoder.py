"""What the decode thread does with the scheduler's memory operations when the model cannot."""

import queue

import numpy as np
import pytest

from nodeapp.inference.decoder import MAX_PARKED_BYTES, Decoder, DecoderLimits
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.scheduler import Limits
from nodeapp.inference.step import Copy, Forget, Park, Remove, Restore, Step
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics


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
def decoder():
    """With a scheduler that notes which slots it is told are lost."""
    made = Decoder(
        Recurrent(),
        DecoderLimits(Limits(2, 3, 400, 10, 4, parked_tokens=200), 5.0, has_speculation=True),
        queue.SimpleQueue(),
        clock=SystemClock(),
        metrics=InferenceMetrics(Metrics("inference")),
        post=lambda _events: None,
    )
    made.lost = set()
    made._scheduler.lost = made.lost.add
    return made


def test_what_was_lost_before_it_was_parked_is_not_restored_as_if_it_were_there(decoder):
    parked = (Remove(0, 5), Park(0, 1), Remove(0, 0))
    assert decoder._apply_memory(Step(parked, ()))
    assert decoder._model.cells[0] == []
    assert not decoder._apply_memory(Step((Restore(1, 1, 4),), ()))
    assert decoder.lost == {1}


def test_a_copy_of_what_was_lost_is_lost_as_well(decoder):
    assert not decoder._apply_memory(Step((Remove(0, 5), Copy(0, 1, 5)), ()))
    assert decoder.lost == {0, 1}


def test_a_slot_that_is_filled_again_after_its_loss_is_not_lost(decoder):
    decoder._model.cells[2] = [1, 2, 3]
    assert decoder._apply_memory(Step((Remove(0, 5), Remove(0, 0), Copy(2, 0, 3)), ()))
    assert (decoder.lost, decoder._model.cells[0]) == (set(), [1, 2, 3])


def test_forgetting_what_could_not_be_parked_is_harmless(decoder):
    decoder._apply_memory(Step((Remove(0, 5), Park(0, 1), Forget(1)), ()))
    assert decoder._parked == {}


def test_what_is_parked_is_bounded_in_bytes_too(decoder):
    decoder._model.size = MAX_PARKED_BYTES - 5
    decoder._apply_memory(Step((Park(0, 1),), ()))
    decoder._model.size = 0
    decoder._apply_memory(Step((Park(0, 2),), ()))
    assert decoder._parked[1].tolist() == list(range(10))
    decoder._model.size = MAX_PARKED_BYTES - 15
    assert decoder._apply_memory(Step((Park(0, 3), Remove(0, 0)), ()))
    assert sorted(decoder._parked) == [1, 2]
    assert not decoder._apply_memory(Step((Restore(3, 1, 4),), ()))
