"""Choosing a token: greedy, and seeded draws that stay inside top-k, top-p and min-p."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import Unavailable
from nodeapp.inference.sampling import (
    FINGERPRINT_SCALE,
    Sampler,
    SamplingParameters,
    best_ids,
    choose,
    fingerprint,
)

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


@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=9000),
    count=st.integers(1, 300),
)
def test_the_best_ids_are_those_of_a_full_sort(values, count):
    array = np.array(values, dtype=np.float32)
    count = min(count, len(array))
    found = best_ids(array, count)
    assert list(array[found]) == sorted(values, reverse=True)[:count]
    assert len(set(found.tolist())) == count


def test_a_large_vocabulary_is_drawn_from_by_its_probabilities():
    weights = np.full(50_000, 1e-9)
    weights[[7, 30_000, 49_999]] = (0.5, 0.3, 0.2)
    logits = np.log(weights).astype(np.float32)
    parameters = SamplingParameters(temperature=1.0, seed=3)
    counts = Counter(choose(logits, parameters, place) for place in range(2000))
    assert counts[7] / 2000 == pytest.approx(0.5, abs=0.04)
    assert counts[30_000] / 2000 == pytest.approx(0.3, abs=0.04)
    assert counts[49_999] / 2000 == pytest.approx(0.2, abs=0.04)


def test_typical_leaves_out_what_is_too_expected_and_too_odd():
    # Entropy 1.26 nats; surprises 0.69, 1.39, 1.9, 2.66, 3.51: the second is nearest.
    assert set(drawn(SamplingParameters(temperature=1.0, typical_p=0.2))) == {1}
    assert set(drawn(SamplingParameters(temperature=1.0, typical_p=0.7))) == {0, 1}


def test_typical_and_top_p_together_never_leave_nothing():
    parameters = SamplingParameters(temperature=1.0, typical_p=0.01, top_p=0.01, min_p=1.0)
    assert len(drawn(parameters, draws=50)) == 1


def picked(parameters, **more):
    return Sampler(parameters, **more).choose(LOGITS, 0).token_id


def test_logit_bias_adds_to_the_logit():
    assert picked(SamplingParameters(logit_bias=((3, 100.0),))) == 3
    assert picked(SamplingParameters(logit_bias=((0, -100.0), (1, -100.0)))) == 2


def test_repeat_penalty_sees_the_last_tokens_of_the_prompt_only():
    parameters = SamplingParameters(repeat_penalty=4.0, penalty_last_n=2)
    assert picked(parameters, prompt_ids=(0, 1)) == 2
    assert picked(parameters, prompt_ids=(0, 4, 4)) == 0


def test_repeat_penalty_pushes_positive_and_negative_logits_down():
    parameters = SamplingParameters(repeat_penalty=2.0)
    for shift in (-3.0, 3.0):
        logits = np.array([1.0, 0.9], dtype=np.float32) + np.float32(shift)
        assert Sampler(parameters, prompt_ids=(0,)).choose(logits, 0).token_id == 1


def test_frequency_and_presence_count_the_answer_not_the_prompt():
    for parameters in (
        SamplingParameters(frequency_penalty=0.4),
        SamplingParameters(presence_penalty=0.8),
    ):
        assert picked(parameters, prompt_ids=(0, 0, 0)) == 0
        assert picked(parameters, answer_ids=(0, 0)) == 1
    sampler = Sampler(SamplingParameters(frequency_penalty=0.4))
    chosen = []
    for place in range(4):
        chosen.append(sampler.choose(LOGITS, place).token_id)
        sampler.accept(chosen[-1])
    assert chosen == [0, 0, 1, 0]


def test_choosing_leaves_the_logits_alone():
    before = LOGITS.copy()
    parameters = SamplingParameters(
        temperature=1.0, repeat_penalty=2.0, presence_penalty=1.0, logit_bias=((1, 5.0),)
    )
    Sampler(parameters, prompt_ids=(0,), answer_ids=(1,)).choose(LOGITS, 0)
    assert (before == LOGITS).all()


class Only:
    """A constraint that allows some ids and remembers what it was asked."""

    def __init__(self, *allowed):
        self.allowed, self.accepted, self.restricted = allowed, [], 0

    @property
    def is_finished(self):
        return len(self.accepted) >= 2

    def allows(self, token_id):
        return token_id in self.allowed

    def restrict(self, logits):
        self.restricted += 1
        keep = logits[list(self.allowed)]
        logits[:] = -np.inf
        logits[list(self.allowed)] = keep

    def accept(self, token_id):
        self.accepted.append(token_id)


def test_a_constraint_is_asked_for_its_mask_only_after_a_rejection():
    free, tight = Only(0, 3), Only(3, 4)
    assert picked(SamplingParameters(), constraint=free) == 0
    assert picked(SamplingParameters(), constraint=tight) == 3
    assert (free.restricted, tight.restricted) == (0, 1)


def test_choosing_twice_is_choosing_once_until_it_is_accepted():
    constraint = Only(2)
    sampler = Sampler(SamplingParameters(), constraint=constraint)
    assert sampler.choose(LOGITS, 0) == sampler.choose(LOGITS, 0)
    assert constraint.accepted == []
    sampler.accept(2)
    sampler.accept(2)
    assert sampler.is_finished


def test_logprobs_are_the_models_own_whatever_the_options():
    parameters = SamplingParameters(temperature=0.5, logit_bias=((4, 100.0),), top_logprobs=2)
    choice = Sampler(parameters).choose(LOGITS + np.float32(3), 0)
    assert choice.token_id == 4
    assert [one.token_id for one in choice.logprobs] == [4, 0, 1]
    shares = np.exp([one.logprob for one in choice.logprobs])
    assert shares == pytest.approx([0.03, 0.5, 0.25], rel=1e-4)
    assert Sampler(SamplingParameters()).choose(LOGITS, 0).logprobs == ()


def test_a_fingerprint_is_the_highest_logits_in_fixed_point():
    ids, logits = fingerprint(np.array([1.0, -2.0, 3.5, 0.25], dtype=np.float32))
    assert ids == (2, 0, 3, 1)
    assert logits == (896, 256, 64, -512)
    assert FINGERPRINT_SCALE == 256


@given(values=st.lists(st.integers(-40, 40), min_size=2, max_size=9000), greedy=st.booleans())
def test_fingerprints_do_not_change_the_choice(values, greedy):
    logits = np.array(values, dtype=np.float32)
    temperature = 0.0 if greedy else 0.9
    plain = Sampler(SamplingParameters(temperature, seed=4)).choose(logits, 7)
    printed = Sampler(SamplingParameters(temperature, seed=4, has_fingerprints=True))
    choice = printed.choose(logits, 7)
    assert choice.token_id == plain.token_id
    assert choice.fingerprint == fingerprint(logits)


@pytest.mark.parametrize("size", [8, 49152])
def test_a_fingerprint_of_what_is_no_number_is_refused(size):
    logits = np.full(size, np.nan, dtype=np.float32)
    sampler = Sampler(SamplingParameters(has_fingerprints=True))
    with pytest.raises(Unavailable, match="model computed nan"):
        sampler.choose(logits, 0)
