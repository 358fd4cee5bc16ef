"""One request while it is decoded: its text, sampler and guesses, and what its reader has taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nodeapp.inference.commands import Submit
from nodeapp.inference.sampling import Choice, Sampler
from nodeapp.inference.speculation import DRAFT_LENGTHS, Guesser, SpeculationCost
from nodeapp.inference.text import Released, TextAssembler
from nodeapp.wire.ipc_inference import Alternative, Fingerprint, Produced, TokenLogprob

Piece = Callable[[int], bytes]
"""The bytes a token stands for."""


@dataclass(slots=True)
class Request:
    """`position`: of the next token. `debt`: events its reader has not taken.

    Times are monotonic seconds, 0 until it was so far.
    """

    submit: Submit
    text: TextAssembler
    sampler: Sampler
    position: int
    cached: int = 0
    choices: deque[Choice] = field(default_factory=deque)
    """Of the tokens that are not released yet, when more than their ids is wanted."""
    guesser: Guesser | None = None
    guess: tuple[int, ...] = ()
    chosen: int = 0
    delivered: int = 0
    debt: int = 0
    paused_at: float | None = None
    admitted_at: float = 0.0
    first_at: float = 0.0

    @classmethod
    def of(cls, submit: Submit) -> Request:
        """Nothing of it is computed yet."""
        sampler = Sampler(
            submit.sampling,
            prompt_ids=submit.prompt_ids,
            answer_ids=submit.answer_ids,
            constraint=submit.constraint,
        )
        position = len(submit.prompt_ids) + len(submit.answer_ids)
        return cls(submit, TextAssembler(submit.stop), sampler, position)

    def draft(self, chosen: Sequence[int], cost: SpeculationCost, running: int) -> tuple[int, ...]:
        """Guesses for what follows the chosen ones, as many as pay while so many others run.

        Also judges what would have been guessed for the chosen ones.
        """
        guesser = self.guesser
        if guesser is None:
            guesser = self.guesser = Guesser((*self.submit.prompt_ids, *self.submit.answer_ids))
        guesser.learn(self.guess, chosen)
        guesser.extend(chosen)
        room = self.submit.max_tokens - self.chosen - 1
        self.guess = guesser.guess(min(room, DRAFT_LENGTHS[-1]))
        length = cost.best_length(guesser.rate, running, len(self.guess))
        return self.guess[:length]

    def event(self, released: Released, piece: Piece) -> Produced:
        """What the reader gets of released tokens."""
        if not self.choices:
            return Produced(released.token_ids, released.text)
        choices = [self.choices.popleft() for _ in released.token_ids]
        return Produced(
            released.token_ids,
            released.text,
            tuple(_logprob(choice, piece) for choice in choices if choice.logprobs),
            tuple(Fingerprint(*choice.fingerprint) for choice in choices if choice.fingerprint),
        )


def _logprob(choice: Choice, piece: Piece) -> TokenLogprob:
    chosen, *top = (
        Alternative(one.token_id, piece(one.token_id), one.logprob) for one in choice.logprobs
    )
    return TokenLogprob(chosen, tuple(top))
