"""How long a request would wait, from what was measured: to refuse early what would wait too long.

Pure: the decode thread feeds steps and answers in, the engine reads the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEARNING = 0.1
_FIRST_ANSWER_TOKENS = 128.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is ahead of a new request, and how fast it goes; times in seconds.

    `prefill_tokens`: prompt tokens accepted and not computed. The two times are 0 until a step of
    their kind was measured.
    """

    waiting: int = 0
    running: int = 0
    prefill_tokens: int = 0
    seconds_per_prefill_token: float = 0.0
    seconds_per_decode_step: float = 0.0
    answer_tokens: float = _FIRST_ANSWER_TOKENS

    def wait_seconds(self, prompt_tokens: int, sequences: int) -> float:
        """Until a new request's first token, roughly: queue, prefill ahead, its own.

        Args:
            prompt_tokens: of the new request.
            sequences: how many run at once at most, >= 1.
        """
        prefill = (self.prefill_tokens + prompt_tokens) * self.seconds_per_prefill_token
        ahead = max(0, self.waiting + self.running - sequences + 1)
        answer = self.answer_tokens * self.seconds_per_decode_step
        return prefill + ahead / sequences * answer


class SpeedMeter:
    """Moving averages of steps and answers."""

    def __init__(self) -> None:
        self._prefill = 0.0
        self._decode = 0.0
        self._answer = _FIRST_ANSWER_TOKENS

    def step(self, *, prefill_tokens: int, decode_rows: int, seconds: float) -> None:
        """A batch took so long; it counts for what most of its rows were."""
        if prefill_tokens > decode_rows:
            self._prefill = _moved(self._prefill, seconds / prefill_tokens)
        elif decode_rows:
            self._decode = _moved(self._decode, seconds)

    def answer(self, tokens: int) -> None:
        """An answer ended with so many tokens."""
        self._answer = _moved(self._answer, float(tokens))

    def load(self, *, waiting: int, running: int, prefill_tokens: int) -> Load:
        """The moment's load at the speeds measured."""
        return Load(waiting, running, prefill_tokens, self._prefill, self._decode, self._answer)


def _moved(average: float, value: float) -> float:
    return value if average == 0.0 else average + _LEARNING * (value - average)
