"""An update from its offer to its blessing, as plain values: its state, and all that can happen.

    idle → checking → idle (a release is available)
    idle → checking (it is still offered) → downloading → verified → installing
    → draining → snapshotting → arming → reboot_pending
    reboot_pending → booted → blessed | rolled_back (and the version is blacklisted)

What a change does to a state is in update_transitions.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodeapp.core.release import Release


class Phase(StrEnum):
    """Where an update stands."""

    IDLE = "idle"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    INSTALLING = "installing"
    DRAINING = "draining"
    SNAPSHOTTING = "snapshotting"
    ARMING = "arming"
    REBOOT_PENDING = "reboot_pending"
    BOOTED = "booted"
    BLESSED = "blessed"
    ROLLED_BACK = "rolled_back"


STEPS = (
    Phase.DOWNLOADING,
    Phase.VERIFIED,
    Phase.INSTALLING,
    Phase.DRAINING,
    Phase.SNAPSHOTTING,
    Phase.ARMING,
    Phase.REBOOT_PENDING,
)
"""Of an update, in order."""
RESTING = (Phase.IDLE, Phase.BLESSED, Phase.ROLLED_BACK)
"""Nothing is under way."""
TRIAL = (Phase.REBOOT_PENDING, Phase.BOOTED)
"""The next boot is the candidate's."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that is not installed again, and why."""

    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateState:
    """All that must outlive a power cut."""

    current: str
    """The blessed version: what starts when nothing is on trial."""
    phase: Phase = Phase.IDLE
    available: Release | None = None
    """Newest acceptable offer of the last check."""
    is_applying: bool = False
    """The check under way is the beginning of an installation."""
    candidate: Release | None = None
    """What is being installed or on trial."""
    previous: str = ""
    """What was blessed before `current` and is still whole; a rollback goes there."""
    newest: str = ""
    """Newest version ever blessed here; older ones are a downgrade."""
    tries_left: int = 0
    blacklist: tuple[Refused, ...] = ()
    is_held: bool = False
    gpus: int = 0
    """That answered the blessed release before its last restart: fewer fail the gate."""
    reason: str = ""
    """Why the last attempt ended; "" when it went well."""
    boot: str = ""
    """Of the machine when its restart was asked for last; see `awaits_restart`."""


@dataclass(frozen=True, slots=True)
class CheckAsked:
    """Look what the channel offers."""


@dataclass(frozen=True, slots=True)
class ReleaseFound:
    """The signed metadata names this one; None: nothing for this kind of installation."""

    release: Release | None


@dataclass(frozen=True, slots=True)
class ApplyAsked:
    """Install what is available."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """The step of this phase is finished and on disk."""

    phase: Phase
    boot: str = ""
    """The boot in which it was done."""
    is_previous_lost: bool = False
    """The next step overwrites what a rollback would go to."""
    gpus: int | None = None
    """GPUs that answer now; None: nobody can tell."""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step under way failed; a release that cannot be made to work is refused for good."""

    reason: str
    is_release_bad: bool = False
    is_offer_void: bool = False
    """What the channel says is refused: what it offered before counts no more."""


@dataclass(frozen=True, slots=True)
class Started:
    """The node starts and this version runs it: ends what an interruption left open."""

    version: str
    boot: str = ""
    """"": whoever says it knows that the machine was restarted."""


@dataclass(frozen=True, slots=True)
class TrialBegan:
    """The candidate is about to be started."""


@dataclass(frozen=True, slots=True)
class GatePassed:
    """The candidate is healthy."""


@dataclass(frozen=True, slots=True)
class GateFailed:
    """The candidate is not healthy."""

    reason: str


@dataclass(frozen=True, slots=True)
class HoldSet:
    """Stop or allow updates."""

    is_held: bool


@dataclass(frozen=True, slots=True)
class Allowed:
    """Take a version off the blacklist."""

    version: str


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """Go back to the previous release."""


Change = (
    CheckAsked
    | ReleaseFound
    | ApplyAsked
    | StepDone
    | StepFailed
    | Started
    | TrialBegan
    | GatePassed
    | GateFailed
    | HoldSet
    | Allowed
    | RollbackAsked
)


@dataclass(frozen=True, slots=True)
class FetchMetadata:
    """Read and verify what the channel offers."""


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch every artefact, compare with the signed hashes."""

    release: Release


@dataclass(frozen=True, slots=True)
class Install:
    """Fill the slot that does not run."""

    release: Release


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new work, finish what is paid for."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy the journal."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Let the next boot be the candidate's."""

    version: str


@dataclass(frozen=True, slots=True)
class Restart:
    """End the running node."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Serve again after a drain that led nowhere."""


@dataclass(frozen=True, slots=True)
class Bless:
    """The candidate is what starts from now on; `previous` is kept, older ones go."""

    version: str
    previous: str


@dataclass(frozen=True, slots=True)
class FallBack:
    """`version` starts again; the failed one goes."""

    version: str
    failed: str


Effect = (
    FetchMetadata
    | Download
    | Install
    | Drain
    | Snapshot
    | Arm
    | Restart
    | Resume
    | Bless
    | FallBack
)
