"""What the decode thread does with the loss of a sequence."""

from __future__ import annotations

import queue

import pytest

from nodeapp.inference.commands import Submit
from nodeapp.inference.decoder import Decoder, DecoderLimits
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.sampling import SamplingParameters
from nodeapp.inference.scheduler import Limits
from nodeapp.inference.speculation import SpeculationCost
from nodeapp.inference.step import Remove, Restore, Step
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics


class Recurrent:
    """A model that cannot drop a part of a sequence, as recurrent ones."""

    def remove(self, _sequence, start):
        return start == 0


@pytest.fixture
def decoder():
    return Decoder(
        Recurrent(),
        DecoderLimits(Limits(2, 3, 400, 10, 4, parked_tokens=200), 5.0, has_speculation=True),
        queue.SimpleQueue(),
        clock=SystemClock(),
        metrics=InferenceMetrics(Metrics("inference")),
        post=lambda _events: None,
    )


def submit(number, prompt_ids):
    return Submit(number, prompt_ids, (), 4, SamplingParameters(), (), "renter", 0.0)


def test_whose_cells_were_lost_is_computed_again_and_found_nothing_cached(decoder):
    decoder._submit(submit(7, tuple(range(9))))
    planned = decoder._scheduler.plan()
    slot = planned.rows[0].slot
    decoder._scheduler.done(planned)
    assert not decoder._apply_memory(Step((Restore(1, slot, 6),), (), ((7, 6),)))
    assert decoder._requests[7].cached == 0
    assert decoder._scheduler.plan().rows == planned.rows
    assert decoder._apply_memory(Step((), (), ((7, 6),)))
    assert decoder._requests[7].cached == 6


def test_a_model_that_cannot_take_guesses_back_gets_none(decoder):
    decoder._cost = SpeculationCost.of_row(0.1)
    assert decoder._apply_memory(Step((Remove(0, 0),), ()))
    assert decoder._cost is not None
    assert not decoder._apply_memory(Step((Remove(0, 5),), ()))
    assert decoder._cost is None
