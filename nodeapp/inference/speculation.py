"""Guessing tokens without a second model: what followed the last time these words were said. Pure.

A guess costs one more row in the batch and, when it comes true, saves a step; it is verified by
choosing the token as always, so the answer is the one that would have come anyway. Whether it pays
depends on the machine (the cost of a further row, measured when the model is loaded), on how many
sequences share the batch, and on how often this request's guesses come true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NGRAM_TOKENS = 3
DRAFT_LENGTHS = (1, 3, 7, 15)
"""With the sure token 2, 4, 8 and 16 rows: kernels work in such numbers, and their times are known.
Measured: 1.15, 1.5, 2.2 and 3.6 times one row by our kernels, 1.85, 3, 5 and 9.4 by llama.cpp's
(Q4_1; 135M model, one thread)."""
_WORTH = 1.05
"""A gain below it is within what was mismeasured."""
_FIRST_RATE = 0.65
_LEARNING = 0.12
_HIGHEST_RATE = 0.98


@dataclass(frozen=True, slots=True)
class SpeculationCost:
    """What batches take: (rows, time as a multiple of one row's), ascending, (1, 1.0) first.

    At least two of them; between them and beyond it goes on in a straight line.
    """

    curve: tuple[tuple[int, float], ...]

    @classmethod
    def of_row(cls, cost: float) -> SpeculationCost:
        """Every further row costs as much."""
        return cls(((1, 1.0), (2, 1.0 + cost)))

    def of(self, rows: int) -> float:
        """The time of a batch, by that of one row."""
        (left, low), (right, high) = self.curve[:2]
        for point in self.curve[2:]:
            if rows <= right:
                break
            (left, low), (right, high) = (right, high), point
        return low + (high - low) * (rows - left) / (right - left)

    def best_length(self, rate: float, sequences: int, room: int) -> int:
        """How many guesses give most tokens per second; 0 when none do.

        Args:
            rate: part of guesses that come true.
            sequences: how many share the batch, this one included.
            room: guesses that can be of use, >= 0.
        """
        best, most = 0, _WORTH * sequences / self.of(sequences)
        for length in DRAFT_LENGTHS:
            if length > room:
                break
            tokens = (1.0 - rate ** (length + 1)) / (1.0 - rate)
            speed = (sequences - 1 + tokens) / self.of(sequences + length)
            if speed > most:
                best, most = length, speed
        return best


class Guesser:
    """One request's tokens, and what followed each of their n-grams the last time."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}
        self._rate = _FIRST_RATE
        self.extend(token_ids)

    @property
    def rate(self) -> float:
        """Part of the guesses that lately came true, < 1."""
        return min(self._rate, _HIGHEST_RATE)

    def extend(self, token_ids: Iterable[int]) -> None:
        """These tokens came next."""
        for token_id in token_ids:
            end = len(self._tokens)
            key = tuple(self._tokens[-NGRAM_TOKENS:])
            if len(key) == NGRAM_TOKENS:
                self._followed[key] = end
            self._tokens.append(token_id)

    def learn(self, guesses: Sequence[int], came: Sequence[int]) -> None:
        """Judge guesses by what came, up to the first that was wrong."""
        for guess, token_id in zip(guesses, came, strict=False):
            self._rate += _LEARNING * (float(guess == token_id) - self._rate)
            if guess != token_id:
                break

    def guess(self, count: int) -> tuple[int, ...]:
        """At most `count` tokens; () when the last n-gram is new."""
        start = self._followed.get(tuple(self._tokens[-NGRAM_TOKENS:]))
        if start is None:
            return ()
        return tuple(self._tokens[start : start + count])
