"""Which token comes next: greedy argmax, or temperature / top-k / top-p / min-p with a seed.

The random number of a token depends on (seed, position) only, so a request resumed after a crash
goes on exactly as it would have. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nodeapp.core.errors import Unavailable

Logits = NDArray[np.float32]
_NUCLEUS_FIRST = 256
MIN_TEMPERATURE = 1e-3
"""Colder is greedy: dividing by less overflows."""


class Constraint(Protocol):
    """Which tokens may come next in one answer (a schema, a tool call); see constraint.py."""

    @property
    def is_finished(self) -> bool:
        """Nothing but the end can follow."""
        ...

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next; an end token when the answer is whole."""
        ...

    def restrict(self, logits: Logits) -> None:
        """Put minus infinity on every token that may not come next, in place."""
        ...

    def accept(self, token_id: int) -> None:
        """The token was chosen."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Bounds are the boundary's (wire/ipc_inference.Sampling); temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


def choose(logits: Logits, parameters: SamplingParameters, position: int) -> int:
    """The next token id.

    Args:
        logits: (vocabulary,) float32; not changed.
        parameters: how to choose.
        position: place of the new token in the sequence; with the seed it is the randomness.

    Raises:
        Unavailable: the model computed NaN or infinity for its best token.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise Unavailable(f"model computed {logits[best]} as the logit of token {best}")
    if parameters.temperature < MIN_TEMPERATURE or parameters.top_k == 1:
        return best
    ids, weights = _candidates(logits, parameters, float(logits[best]))
    bits = np.random.Philox(key=np.array((parameters.seed, position), dtype=np.uint64))
    point = np.random.Generator(bits).random() * weights.sum()
    place = int(np.searchsorted(np.cumsum(weights), point, side="right"))
    return int(ids[min(place, len(ids) - 1)])


def choose_allowed(
    logits: Logits, parameters: SamplingParameters, position: int, constraint: Constraint
) -> int:
    """The next token id under a constraint.

    What the model wants is checked first, which costs microseconds; only when it is not allowed
    are all tokens looked at.

    Raises:
        Unavailable: as `choose`; no token is allowed.
    """
    token_id = choose(logits, parameters, position)
    if constraint.allows(token_id):
        return token_id
    allowed = logits.copy()
    constraint.restrict(allowed)
    return choose(allowed, parameters, position)


def _candidates(
    logits: Logits, parameters: SamplingParameters, highest: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Ids with unnormalised probabilities, best first: top-k, then top-p, then min-p."""
    scaled = (logits.astype(np.float64) - highest) / parameters.temperature
    weights = np.exp(scaled)
    count = parameters.top_k or len(weights)
    if parameters.top_p < 1.0:
        ids = _nucleus(weights, count, parameters.top_p)
    else:
        ids = _top(weights, count)
    chosen = weights[ids]
    keep = chosen >= parameters.min_p
    return ids[keep], chosen[keep]


def _top(weights: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The `count` heaviest ids, heaviest first; equal weights by id, so that it is stable."""
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    part = np.sort(np.argpartition(-weights, count)[:count])
    return part[np.argsort(-weights[part], kind="stable")]


def _nucleus(weights: NDArray[np.float64], count: int, top_p: float) -> NDArray[np.intp]:
    """The shortest prefix of the top `count` that holds `top_p` of their mass.

    Sorting a whole vocabulary costs milliseconds; a few hundred candidates nearly always hold
    the mass, so the prefix is widened only when they do not.
    """
    mass = (
        float(weights.sum())
        if count >= len(weights)
        else float(weights[_top(weights, count)].sum())
    )
    width = min(_NUCLEUS_FIRST, count)
    while True:
        ids = _top(weights, width)
        enough = int(np.searchsorted(np.cumsum(weights[ids]), top_p * mass)) + 1
        if enough <= len(ids) or width >= min(count, len(weights)):
            return ids[:enough]
        width = min(width * 4, count)
