"""What a change does to an update: apply(state, change) -> (state, effects), pure.

Until `arming` nothing that starts at the next boot has changed: an interruption leads back to
idle, and the same command goes on from the files that are there. From `reboot_pending` on, the
version that is left (`current`) stays whole until the new one is blessed; every boot of the new
one costs a try. The other slot is filled while the node still serves; it is drained last.

Rules: a version is offered only when it is newer than every version that was ever blessed here
and not blacklisted; an installation begins with another look whether it is still offered; a hold
stops everything but a rollback; only a release that was blessed here before and is still whole
can be rolled back to. Whoever runs this journals the state before the effects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.core.release import Release, is_newer, version_key
from nodeapp.core.update import (
    RESTING,
    STEPS,
    TRIAL,
    Allowed,
    ApplyAsked,
    Arm,
    Bless,
    Change,
    CheckAsked,
    Download,
    Drain,
    Effect,
    FallBack,
    FetchMetadata,
    GateFailed,
    GatePassed,
    HoldSet,
    Install,
    Phase,
    Refused,
    ReleaseFound,
    Restart,
    Resume,
    RollbackAsked,
    Snapshot,
    Started,
    StepDone,
    StepFailed,
    TrialBegan,
    UpdateState,
)

MAX_TRIES = 3
"""Boots of a new release that may end without a verdict (power cut, hang) before it is given up."""
MAX_BLACKLIST = 64
"""The oldest entries go first; they are older than what is offered."""
MAX_REASON_CHARACTERS = 400
Next = tuple[UpdateState, tuple[Effect, ...]]


def why_not(state: UpdateState, release: Release) -> str:
    """Why this release is not for this node; "" when it is."""
    newest = state.newest or state.current
    for refused in state.blacklist:
        if refused.version == release.version:
            return f"{release.version} is blacklisted: {refused.reason}"
    if not is_newer(release.version, newest):
        return f"{release.version} is not newer than {newest}, which was installed here"
    if release.least_from and is_newer(release.least_from, state.current):
        return f"{release.version} needs {release.least_from} or later, {state.current} runs"
    return ""


def awaits_restart(state: UpdateState, boot: str) -> bool:
    """Whether the machine still has to go down for the trial: only the updater was restarted."""
    return state.phase is Phase.REBOOT_PENDING and boot != "" and state.boot == boot


def apply(state: UpdateState, change: Change) -> Next:
    """One step.

    Raises:
        Rejected: it may not be done now; says why.
    """
    match change:
        case HoldSet() | Allowed():
            return _decided(state, change), ()
        case CheckAsked() | ApplyAsked() | RollbackAsked():
            return _asked(state, change)
        case ReleaseFound(release):
            return _found(state, release)
        case StepDone():
            return _done(state, change)
        case StepFailed():
            return _failed(state, change)
        case Started(version, boot):
            return _started(state, version, boot)
        case TrialBegan() | GatePassed() | GateFailed():
            return _trial(state, change)
        case _:
            assert_never(change)


def _asked(state: UpdateState, change: CheckAsked | ApplyAsked | RollbackAsked) -> Next:
    if state.phase not in RESTING:
        raise Rejected(f"an update is under way: {state.phase}; see `fabstir-node update status`")
    match change:
        case CheckAsked():
            return replace(state, phase=Phase.CHECKING, reason=""), (FetchMetadata(),)
        case ApplyAsked():
            return _begin(state)
        case RollbackAsked():
            return _roll_back(state)
        case _:
            assert_never(change)


def _begin(state: UpdateState) -> Next:
    if state.is_held:
        raise Rejected("updates are held; `fabstir-node update unhold` allows them")
    release = state.available
    if release is None:
        raise Rejected("no newer release is known; `fabstir-node update check` looks for one")
    if refusal := why_not(state, release):
        raise Rejected(refusal)
    # It may have been withdrawn, or its metadata have expired, since it was offered.
    return replace(state, phase=Phase.CHECKING, is_applying=True, reason=""), (FetchMetadata(),)


def _decided(state: UpdateState, change: HoldSet | Allowed) -> UpdateState:
    """At any time; what is under way goes on."""
    if isinstance(change, HoldSet):
        return replace(state, is_held=change.is_held)
    version = change.version
    kept = tuple(refused for refused in state.blacklist if refused.version != version)
    if kept == state.blacklist:
        refused = ", ".join(one.version for one in kept) or "none"
        raise Rejected(f"{version[:64]} is not refused here; refused: {refused}")
    # Blessed and then left by a rollback: it would stay "not newer than itself".
    newest = state.current if version == state.newest else state.newest
    return replace(state, blacklist=kept, newest=newest)


def _roll_back(state: UpdateState) -> Next:
    if not state.previous:
        raise Rejected(f"{state.current} is the only release here that was blessed and is whole")
    target = Release(state.previous, "", "rollback by the operator", ())
    begun = replace(state, phase=Phase.DRAINING, candidate=target, reason="")
    return begun, (Drain(),)


def _found(state: UpdateState, release: Release | None) -> Next:
    _require(state, Phase.CHECKING)
    refusal = why_not(state, release) if release else ""
    offered = None if refusal else release
    if offered and state.is_applying:
        begun = replace(
            state,
            phase=Phase.DOWNLOADING,
            available=offered,
            candidate=offered,
            is_applying=False,
        )
        return begun, (Download(offered),)
    # The version that runs is what a channel normally offers: nothing to tell a person.
    is_usual = release is None or release.version == state.current
    reason = "" if is_usual else refusal
    if state.is_applying and state.available:
        reason = reason or f"{state.available.version} is not offered any more"
    ended = replace(state, phase=Phase.IDLE, available=offered, is_applying=False, reason=reason)
    return ended, ()


def _done(state: UpdateState, change: StepDone) -> Next:
    phase = change.phase
    _require(state, phase)
    release = state.candidate
    if release is None or phase not in STEPS[:-1]:
        raise InvalidRequest(f"no step ends in phase {phase}")
    following = STEPS[STEPS.index(phase) + 1]
    effects: dict[Phase, tuple[Effect, ...]] = {
        Phase.VERIFIED: (),
        Phase.INSTALLING: (Install(release),),
        Phase.DRAINING: (Drain(),),
        Phase.SNAPSHOTTING: (Snapshot(),),
        Phase.ARMING: (Arm(release.version),),
        Phase.REBOOT_PENDING: (Restart(),),
    }
    done = replace(
        state,
        phase=following,
        tries_left=MAX_TRIES if following is Phase.REBOOT_PENDING else 0,
        boot=change.boot,
        previous="" if change.is_previous_lost else state.previous,
        gpus=state.gpus if change.gpus is None else change.gpus,
    )
    return done, effects[following]


def _failed(state: UpdateState, change: StepFailed) -> Next:
    if state.phase in (*RESTING, *TRIAL):
        raise InvalidRequest(f"no step is under way in phase {state.phase}")
    effects: tuple[Effect, ...] = ()
    if state.phase in (Phase.DRAINING, Phase.SNAPSHOTTING, Phase.ARMING):
        effects = (Resume(),)
    ended = replace(
        state,
        phase=Phase.IDLE,
        candidate=None,
        available=None if change.is_offer_void else state.available,
        is_applying=False,
        reason=change.reason[:MAX_REASON_CHARACTERS],
    )
    if change.is_release_bad and state.candidate is not None:
        ended = _blacklisted(ended, state.candidate.version, change.reason)
    return ended, effects


def _started(state: UpdateState, version: str, boot: str) -> Next:
    """`version` decides: the boot loader may have started either slot."""
    if awaits_restart(state, boot):
        return state, (Restart(),)
    candidate = state.candidate.version if state.candidate else ""
    if state.phase in (*TRIAL, Phase.ARMING) and version == candidate != state.current:
        return _tried(state, boot)
    if state.phase in TRIAL:
        return _fall_back(state, f"{version} was started instead of {candidate}")
    if state.phase in RESTING:
        return replace(state, current=state.current or version), ()
    ended = replace(state, phase=Phase.IDLE, candidate=None, is_applying=False)
    if state.phase is Phase.CHECKING and not state.is_applying:
        return ended, ()
    return replace(ended, reason=f"interrupted while {state.phase}; apply it again"), ()


def _tried(state: UpdateState, boot: str) -> Next:
    """A start costs a try, however many say that it happened."""
    if state.phase is Phase.BOOTED and boot and state.boot == boot:
        return state, ()
    left = MAX_TRIES if state.phase is Phase.ARMING else state.tries_left
    if left == 0:
        return _fall_back(state, f"no verdict after {MAX_TRIES} starts")
    return replace(state, phase=Phase.BOOTED, tries_left=left - 1, boot=boot), ()


def _trial(state: UpdateState, change: TrialBegan | GatePassed | GateFailed) -> Next:
    if state.phase not in TRIAL or state.candidate is None:
        raise InvalidRequest(f"no release is on trial in phase {state.phase}")
    match change:
        case TrialBegan():
            return _tried(state, "")
        case GatePassed():
            return _bless(state, state.candidate.version)
        case GateFailed(reason):
            return _fall_back(state, reason)
        case _:
            assert_never(change)


def _bless(state: UpdateState, version: str) -> Next:
    newest = version if is_newer(version, state.newest or state.current) else state.newest
    blessed = replace(
        state,
        phase=Phase.BLESSED,
        current=version,
        previous=state.current,
        newest=newest or state.current,
        candidate=None,
        available=None,
        tries_left=0,
        reason="",
    )
    if version == state.previous:
        # What was left by an operator's rollback is not offered again by the next check.
        left = _blacklisted(blessed, state.current, "rolled back by the operator")
        blessed = replace(left, previous="")
        return blessed, (Bless(version, state.current),)
    return blessed, (Bless(version, state.current),)


def _fall_back(state: UpdateState, reason: str) -> Next:
    failed = state.candidate.version if state.candidate else ""
    ended = replace(
        state,
        phase=Phase.ROLLED_BACK,
        candidate=None,
        available=None,
        tries_left=0,
        reason=f"{failed} was rolled back: {reason}"[:MAX_REASON_CHARACTERS],
    )
    if failed == state.previous:
        ended = replace(ended, previous="")
    return _blacklisted(ended, failed, reason), (FallBack(state.current, failed),)


def _blacklisted(state: UpdateState, version: str, reason: str) -> UpdateState:
    kept = [refused for refused in state.blacklist if refused.version != version]
    kept.append(Refused(version, reason[:MAX_REASON_CHARACTERS]))
    kept.sort(key=lambda refused: version_key(refused.version))
    return replace(state, blacklist=tuple(kept[-MAX_BLACKLIST:]))


def _require(state: UpdateState, phase: Phase) -> None:
    if state.phase is not phase:
        raise InvalidRequest(f"phase is {state.phase}, not {phase}")
