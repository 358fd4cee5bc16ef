"""Choosing a token: greedy, and seeded draws that stay inside top-k, top-p and min-p."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import Unavailable
from nodeapp.inference.sampling import SamplingParameters, choose

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], dtype=np.float32))


def drawn(parameters, *, draws=2000):
    return Counter(choose(LOGITS, parameters, position) for position in range(draws))


def test_greedy_takes_the_highest():
    assert choose(LOGITS[::-1].copy(), SamplingParameters(), 0) == 4


def test_draws_follow_the_probabilities():
    counts = drawn(SamplingParameters(temperature=1.0, seed=1), draws=4000)
    for token, share in enumerate((0.5, 0.25, 0.15, 0.07, 0.03)):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


def test_top_k_cuts():
    assert set(drawn(SamplingParameters(temperature=2.0, top_k=2))) == {0, 1}


def test_top_p_keeps_the_shortest_sufficient_set():
    assert set(drawn(SamplingParameters(temperature=1.0, top_p=0.76))) == {0, 1, 2}
    assert set(drawn(SamplingParameters(temperature=1.0, top_p=0.4))) == {0}


def test_min_p_is_relative_to_the_best():
    assert set(drawn(SamplingParameters(temperature=1.0, min_p=0.29))) == {0, 1, 2}


def test_seed_and_position_are_the_whole_randomness():
    parameters = SamplingParameters(temperature=1.5, seed=7)
    first = [choose(LOGITS, parameters, position) for position in range(50)]
    assert first == [choose(LOGITS, parameters, position) for position in range(50)]
    other = SamplingParameters(temperature=1.5, seed=8)
    assert first != [choose(LOGITS, other, position) for position in range(50)]


def test_a_wide_nucleus_is_found_in_a_large_vocabulary():
    slope = np.linspace(0, -0.001, 5000, dtype=np.float32)
    parameters = SamplingParameters(temperature=1.0, top_p=0.5)
    tokens = {choose(slope, parameters, place) for place in range(300)}
    assert max(tokens) < 2501
    assert len(tokens) > 100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_computes_nonsense_is_named(value):
    with pytest.raises(Unavailable, match="logit"):
        choose(np.full(4, value, dtype=np.float32), SamplingParameters(), 0)


@given(
    temperature=st.floats(0, 4),
    top_k=st.integers(0, 4096),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 2**31),
)
def test_every_allowed_parameter_gives_a_token(temperature, top_k, top_p, min_p, seed, position):
    parameters = SamplingParameters(temperature, top_k, top_p, min_p, seed)
    assert 0 <= choose(LOGITS, parameters, position) < len(LOGITS)
