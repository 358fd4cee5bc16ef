"""The verdict on a release that was booted for a trial: `fabstir-health.service` waits for it.

It stands before boot-complete.target: when it ends well systemd-bless-boot makes the release the
one that boots, when it fails the machine reboots and the boot loader counts down. One judge: the
gate says it here, this writes it into the update journal, and the boot loader follows. What is
not on trial is never judged, so that a wrong setting cannot make a machine reboot for ever.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from nodeapp.core.update_transitions import awaits_restart
from nodeapp.service.logs import get_logger
from nodeapp.updater.backend import UpdateBackend
from nodeapp.updater.gate import Gate
from nodeapp.updater.update_journal import UpdateJournal

_log = get_logger(__name__)


BOOT_COUNT = Path(
    "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)
"""Where systemd-boot names the UKI that it counted down for; not there when it was blessed."""
_TRIES = re.compile(r"\+(\d+)(?:-\d+)?\.efi$")


def boot_tries_left(variable: Path = BOOT_COUNT) -> int:
    """Boots after this one that the boot loader gives the running release; 0: it counts none."""
    try:
        # Four bytes of attributes, then the name with its end.
        name = variable.read_bytes()[4:].decode("utf-16-le", errors="replace").rstrip("\0")
    except OSError:
        return 0
    found = _TRIES.search(name)
    return int(found[1]) if found else 0


def is_counted(variable: Path = BOOT_COUNT) -> bool:
    """Whether the boot loader counts the boots of the running release, its last one included."""
    return variable.exists()


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
    tries_left: Callable[[], int] = boot_tries_left
    is_counted: Callable[[], bool] = is_counted

    async def failure(self) -> str:
        """Why this boot is not to be blessed; "" when it is, or when nothing is on trial.

        Raises:
            Corrupt, Unavailable: the verdict on a trial cannot be kept.
        """
        refused = await asyncio.to_thread(self._refused)
        if refused:
            return refused
        state = await asyncio.to_thread(self._begin)
        version = self.backend.running()
        if state is not None and state.phase is Phase.ROLLED_BACK and state.current != version:
            return state.reason  # it used up its starts
        if state is None or state.candidate is None or state.candidate.version != version:
            return ""
        failure = await self.gate.failure(version, state.gpus)
        _log.info("release judged", version=version, failure=failure)
        change = GateFailed(failure) if failure else GatePassed()
        await asyncio.to_thread(self._advance, change)
        return failure

    def _refused(self) -> str:
        """Why it is not this release that should run; "" when it may.

        The verdict was written, then the power was cut or the helper was down: the boot loader
        starts the release once more. To pass it now would bless it.
        """
        running = self.backend.running()
        try:
            state = self.journal.read()
        except (Corrupt, Unavailable):
            return ""  # _begin tells it
        if not state.current and self.is_counted():
            # What was armed is written there: this is another file system, or none.
            return "the boot loader tries this release, of which no state is left: is it mounted?"
        reasons = [one.reason for one in state.blacklist if one.version == running]
        is_over = state.phase is Phase.ROLLED_BACK and running != state.current
        if not (is_over and reasons and self.tries_left()):
            return ""
        self._carry_out(FallBack(state.current, running))
        return f"{running} is refused here: {reasons[0]}"

    def _begin(self) -> UpdateState | None:
        """None: nothing is on trial, or the journal cannot tell.

        Whatever is wrong with the journal is no reason to reboot where the boot loader does not
        count: the next boot would find the same.
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
            is_due = on_trial and not awaits_restart(state, self.backend.boot())
            return self._advance(Started(running, self.backend.boot())) if is_due else None
        except (Corrupt, Unavailable) as error:
            if is_trial and self.tries_left():
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
