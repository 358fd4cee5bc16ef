"""The verdict on a release that was booted for a trial: `fabstir-health.service` waits for it.

It stands before boot-complete.target: when it ends well systemd-bless-boot makes the release the
one that boots, when it fails the machine reboots and the boot loader counts down. One judge: the
gate says it here, this writes it into the update journal, and the boot loader follows. What is
not on trial is never judged, so that a wrong setting cannot make a machine reboot for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from nodeapp.core.errors import Corrupt, NodeError, Unavailable
from nodeapp.core.update import (
    TRIAL,
    Bless,
    Effect,
    FallBack,
    GateFailed,
    GatePassed,
    Phase,
    Started,
    UpdateState,
)
from nodeapp.service.logs import get_logger
from nodeapp.updater.backend import UpdateBackend
from nodeapp.updater.gate import Gate, count_gpus
from nodeapp.updater.update_journal import UpdateJournal

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SettingsUnusable:
    """The gate of a release that cannot even read its settings."""

    reason: str

    async def failure(self, version: str, least_gpus: int) -> str:  # noqa: ARG002 (a Gate)
        """Always."""
        return self.reason


@dataclass(frozen=True, slots=True)
class BootHealth:
    """Judges this boot once."""

    journal: UpdateJournal
    backend: UpdateBackend
    gate: Gate
    gpus: Callable[[], int] = count_gpus

    async def failure(self) -> str:
        """Why this boot is not to be blessed; "" when it is, or when nothing is on trial.

        Raises:
            Corrupt, Unavailable: the verdict on a trial cannot be kept.
        """
        state = await asyncio.to_thread(self._begin)
        version = self.backend.running()
        if state is None or state.candidate is None or state.candidate.version != version:
            return ""
        failure = await self.gate.failure(version, state.gpus)
        _log.info("release judged", version=version, failure=failure)
        change = GateFailed(failure) if failure else GatePassed(self.gpus())
        await asyncio.to_thread(self._advance, change)
        return failure

    def _begin(self) -> UpdateState | None:
        """None: nothing is on trial, or the journal cannot tell.

        Whatever is wrong with the journal is no reason to reboot a release that was blessed: the
        next boot would find the same.
        """
        running = self.backend.running()
        is_trial = False
        try:
            state = self.journal.read()
            is_trial = state.candidate is not None and state.candidate.version == running
            # The updater says so as well when it starts; a release in which it does not start
            # is judged all the same.
            # Armed, and the power cut before that was written: it is on trial all the same.
            is_armed = state.phase is Phase.ARMING and is_trial
            on_trial = state.phase in TRIAL or is_armed
            return self._advance(Started(running)) if on_trial else None
        except (Corrupt, Unavailable) as error:
            if is_trial:
                raise
            _log.error("update journal is given up", error=error.message)
            return None

    def _advance(self, change: Started | GatePassed | GateFailed) -> UpdateState:
        state, effects = self.journal.advance(change)
        for effect in effects:
            self._carry_out(effect)
        return state

    def _carry_out(self, effect: Effect) -> None:
        try:
            match effect:
                case Bless(version, previous):
                    self.backend.bless(version, previous)
                case FallBack(version, failed):
                    self.backend.fall_back(version, failed)
                case _:
                    raise Corrupt(f"{type(effect).__name__} is no verdict's work")
        except NodeError as error:
            # The failing unit reboots the machine, and the boot loader counts.
            _log.error("verdict is not carried out", error=error.message)
