"""What a step of an update leaves in the audit log."""

from __future__ import annotations

from nodeapp.core.audit import AuditEvent, ReleaseBlacklisted, UpdateStep
from nodeapp.core.update import UpdateState


def told(before: UpdateState, after: UpdateState) -> tuple[AuditEvent, ...]:
    """Events of one change: the phase and hold, and every version that is refused from now on."""
    events: list[AuditEvent] = []
    release = after.candidate or before.candidate or after.available
    if (before.phase, before.is_held, before.current) != (
        after.phase,
        after.is_held,
        after.current,
    ):
        version = release.version if release else ""
        events.append(UpdateStep(after.phase, version, after.current, after.is_held, after.reason))
    known = {one.version for one in before.blacklist}
    events += [
        ReleaseBlacklisted(one.version, one.reason)
        for one in after.blacklist
        if one.version not in known
    ]
    return tuple(events)
