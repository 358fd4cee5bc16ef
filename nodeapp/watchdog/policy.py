"""When a process is killed for silence and when a given-up one is tried again; pure.

A process that is still starting is left alone until it answered once, or START_SECONDS passed.
One that supervisord gave up (FATAL) is in quarantine: tried again after a pause that doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

START_SECONDS = 90.0
QUARANTINE_SECONDS = 30.0
MAX_QUARANTINE_SECONDS = 3600.0
CALM_SECONDS = 600.0
"""After so long without trouble the next quarantine is short again."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One look at one process."""

    process: str
    state: str
    pid: int
    answered: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """Effect: it is up but silent."""

    process: str
    misses: int


@dataclass(frozen=True, slots=True)
class Start:
    """Effect: its quarantine is over."""

    process: str


Effect = Kill | Start


@dataclass(frozen=True, slots=True)
class Watched:
    """What is remembered of one process; times are monotonic seconds."""

    pid: int = 0
    since: float = 0.0
    has_answered: bool = False
    misses: int = 0
    quarantines: int = 0
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class WatchState:
    """All of them."""

    max_misses: int
    watched: Mapping[str, Watched] = field(default_factory=dict)


def apply(state: WatchState, probed: Probed, now: float) -> tuple[WatchState, tuple[Effect, ...]]:
    """Take one look into account.

    Args:
        now: monotonic seconds.
    """
    known = state.watched.get(probed.process, Watched())
    match probed.state:
        case "FATAL":
            known, effects = _quarantine(known, probed, now)
        case "STARTING" | "RUNNING":
            known, effects = _running(known, probed, now, state.max_misses)
        case _:
            known, effects = replace(known, misses=0), ()
    return replace(state, watched={**state.watched, probed.process: known}), effects


def _quarantine(known: Watched, probed: Probed, now: float) -> tuple[Watched, tuple[Effect, ...]]:
    if known.retry_at is None:
        pause = min(QUARANTINE_SECONDS * 2**known.quarantines, MAX_QUARANTINE_SECONDS)
        return replace(known, retry_at=now + pause, quarantines=known.quarantines + 1), ()
    if now < known.retry_at:
        return known, ()
    return replace(known, retry_at=None), (Start(probed.process),)


def _running(
    known: Watched, probed: Probed, now: float, max_misses: int
) -> tuple[Watched, tuple[Effect, ...]]:
    if probed.pid != known.pid:
        known = replace(
            known, pid=probed.pid, since=now, has_answered=False, misses=0, retry_at=None
        )
    if probed.answered:
        calm = now - known.since > CALM_SECONDS
        quarantines = 0 if calm else known.quarantines
        return replace(known, has_answered=True, misses=0, quarantines=quarantines), ()
    if not known.has_answered and now - known.since < START_SECONDS:
        return known, ()
    known = replace(known, misses=known.misses + 1)
    if known.misses < max_misses:
        return known, ()
    return replace(known, misses=0), (Kill(probed.process, max_misses),)
