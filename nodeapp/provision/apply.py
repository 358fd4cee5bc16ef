"""Takes over a CONFIG when it is right and changed, puts to use what counts, tells how it went.

Needs no network. A CONFIG that is not right changes nothing: what was taken over before goes on,
and is put to use before CONFIG is looked at: nothing on a medium keeps a machine off its network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nodeapp.core.audit import Provisioned
from nodeapp.core.errors import NodeError
from nodeapp.provision.activate import activate, set_machine_id
from nodeapp.provision.check import check, open_sealed_parts
from nodeapp.provision.findings import Finding
from nodeapp.provision.generations import Held, digest_of, empty_stage, prune, publish, read_held
from nodeapp.provision.identities import Identities, make_identities
from nodeapp.provision.medium import Medium, read_medium, wipe
from nodeapp.provision.parts import is_asked_for
from nodeapp.provision.places import Account, Places
from nodeapp.provision.rescue import tell
from nodeapp.service.audit import direct_audit_in
from nodeapp.service.settings import NodeSettings
from nodeapp.wire.ipc_provision import Outcome, ProvisionReport


@dataclass(slots=True)
class _Run:
    places: Places
    account: Account | None
    outcome: Outcome = "waiting"
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def apply_config(
    places: Places,
    media: Path | None,
    account: Account | None,
    *,
    partitions: Sequence[str] = (),
) -> ProvisionReport:
    """One run.

    Args:
        places: of this machine, and they outlive a reboot: see rescue.py.
        media: the mounted CONFIG; None, or an empty directory: there is none.
        account: who owns the node's files; None: whoever runs this.
        partitions: all that are labelled CONFIG; of two, chance would choose the one that is read.

    Raises:
        Unavailable: not even the report can be written.
    """
    run = _Run(places, account)
    places.told.mkdir(mode=0o755, parents=True, exist_ok=True)
    identities: Identities | None = None
    before = held = read_held(places)
    activated = activate(places, held) if held is not None else []
    try:
        identities = make_identities(places, account)
        if len(partitions) > 1:
            _refuse(
                run,
                f"{' and '.join(partitions)} are both labelled CONFIG",
                "take one out, or give it another label; none was read",
            )
        else:
            held = _take_over(run, media, held, identities)
        # No secret of an older, a refused or an interrupted CONFIG stays.
        prune(places, held)
    except NodeError as error:
        _refuse(run, error.message)
    except OSError as error:
        _refuse(run, f"{error.filename}: {error.strerror}")
    if held is not None and held.damage:
        _refuse(run, held.damage, "start it with a whole CONFIG, wallet and passwords included")
    if held is not None and held is not before:
        activated = activate(places, held)
    run.notes += activated
    if identities is not None:
        run.notes += [identities.trouble] if identities.trouble else []
        run.notes += set_machine_id(places, identities.machine_id)
    report = _told(run, held, identities)
    if run.outcome in {"applied", "refused"}:
        audit = direct_audit_in(places.state, NodeSettings(), "provision")
        audit.record(Provisioned(report.outcome, report.generation, report.wallet, report.hostname))
    return report


def _refuse(run: _Run, problem: str, remedy: str = "see docs/provisioning.md") -> None:
    run.outcome = "refused"
    run.findings.append(Finding("this machine", problem, remedy))


def _take_over(
    run: _Run, media: Path | None, held: Held | None, identities: Identities
) -> Held | None:
    medium = read_medium(media) if media is not None else Medium({})
    if not medium.files and not medium.findings and not medium.being_wiped:
        run.outcome = "unchanged" if held else "waiting"
        return held
    kept = held.secrets() if held else {}
    opened, found = open_sealed_parts(medium.files, identities.sealing_key)
    run.findings += [*medium.findings, *found]
    run.notes += medium.notes
    for name in sorted(medium.being_wiped - kept.keys()):
        if is_asked_for(name):
            run.findings.append(Finding(name, "is not text", "write it again"))
        else:
            run.notes.append(f"{name} is not read: it is not text")
    merged = {**kept, **opened}
    if run.findings:
        run.outcome = "refused"
        return held
    if held and held.manifest.digest == digest_of(merged):
        run.outcome = "unchanged"
    else:
        held = _publish(run, merged, opened, held)
    if run.outcome != "refused" and held is not None:
        _wipe(run, medium, held)
    return held


def _publish(
    run: _Run, merged: Mapping[str, bytes], opened: Mapping[str, bytes], held: Held | None
) -> Held | None:
    stage = empty_stage(run.places)
    checked = check(merged, stage, run.places.current, held=merged.keys() - opened.keys())
    run.notes += checked.notes
    if checked.findings:
        run.findings += checked.findings
        run.outcome = "refused"
        return held
    # What the next boot will see: what lies there, and the secrets that were taken over.
    seen = {**opened, **{name: merged[name] for name in checked.secrets}}
    held = publish(run.places, stage, checked, digest_of(seen), run.account)
    run.outcome = "applied"
    return held


def _wipe(run: _Run, medium: Medium, held: Held) -> None:
    if held.manifest.keep_secrets:
        return
    left = wipe(medium, held.manifest.secrets)
    if left:
        run.notes.append(
            f"{', '.join(left)} could not be wiped from CONFIG: take it out and keep it safe"
        )


def _told(run: _Run, held: Held | None, identities: Identities | None) -> ProvisionReport:
    return tell(
        run.places,
        ProvisionReport(
            outcome=run.outcome,
            findings=tuple(one.text() for one in run.findings),
            notes=tuple(run.notes),
            is_configured=held is not None,
            generation=held.directory.name if held else "",
            hostname=held.manifest.hostname if held else "",
            wallet=held.manifest.wallet if held else "",
            machine_id=identities.machine_id if identities else "",
            peer_id=identities.peer_id if identities else "",
            ssh_fingerprint=identities.ssh_fingerprint if identities else "",
            sealing_key=identities.sealing_public_key if identities else "",
        ),
    )
