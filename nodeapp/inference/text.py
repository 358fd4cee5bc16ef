"""Token bytes -> text as it may be delivered: whole characters only, stop strings cut off.

Tokens and text stay together: a token is released when its characters are complete and cannot be
the beginning of a stop string. What the stop string swallowed is neither delivered nor counted.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Released:
    """Tokens that may be delivered and exactly their text."""

    token_ids: tuple[int, ...]
    text: str
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Held:
    token_id: int
    end: int
    is_whole: bool


class TextAssembler:
    """State of one answer. `feed` each token in order, `flush` once at the end."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._held: list[_Held] = []

    def feed(self, token_id: int, piece: bytes) -> Released:
        """Take one token; returns what can be delivered now, perhaps nothing."""
        self._text += self._decoder.decode(piece)
        is_whole = not self._decoder.getstate()[0]
        self._held.append(_Held(token_id, len(self._text), is_whole))
        cut = self._first_stop()
        if cut is not None:
            return self._cut(cut)
        return self._release(len(self._text) - self._stop_prefix_length())

    def flush(self) -> Released:
        """The rest, an unfinished character as U+FFFD."""
        self._text += self._decoder.decode(b"", final=True)
        ids = tuple(held.token_id for held in self._held)
        released = Released(ids, self._text if ids else "")
        self._held, self._text = [], ""
        return released

    def _first_stop(self) -> int | None:
        places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
        return min(places, default=None)

    def _cut(self, place: int) -> Released:
        begins = (0, *(held.end for held in self._held))
        ids = tuple(
            held.token_id for begin, held in zip(begins, self._held, strict=False) if begin < place
        )
        released = Released(ids, self._text[:place], is_stopped=True)
        self._held, self._text = [], ""
        return released

    def _stop_prefix_length(self) -> int:
        """Length of the longest tail that a further token could turn into a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop):
                return length
        return 0

    def _release(self, limit: int) -> Released:
        count = 0
        for index, held in enumerate(self._held):
            if held.end <= limit and held.is_whole:
                count = index + 1
        if count == 0:
            return Released((), "")
        ids = tuple(held.token_id for held in self._held[:count])
        end = self._held[count - 1].end
        released = Released(ids, self._text[:end])
        self._text = self._text[end:]
        self._held = [_Held(h.token_id, h.end - end, h.is_whole) for h in self._held[count:]]
        return released
