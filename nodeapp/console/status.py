"""From what was seen of a node to what an operator needs to know: phase, reason, facts, next steps.

Pure: values in, values out. Nothing here changes while nothing happens, so a screen that is drawn
on change stays still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from nodeapp.core.amounts import NATIVE_DECIMALS, USD_DECIMALS
from nodeapp.service.tree import ProcessStatus
from nodeapp.wire.ipc_chain import HostView, SessionView
from nodeapp.wire.ipc_p2p import NetworkView
from nodeapp.wire.ipc_provision import ProvisionReport
from nodeapp.wire.ipc_update import UpdateView

INSTALLING = ("downloading", "verified", "installing", "draining", "snapshotting", "arming")
ON_TRIAL = ("reboot_pending", "booted")
OPEN_SESSIONS = ("active", "closing")
HELD = "backups of another journal of this wallet are there: is this a new disk?"
NOT_READ = "CONFIG was not read: provisioning did not come to its end"


class Phase(StrEnum):
    """Where the machine stands, in the operator's words."""

    WAITING = "waiting for configuration"
    STOPPED = "not running"
    STARTING = "starting"
    LOADING = "loading the model"
    SERVING = "serving"
    UPDATING = "updating"
    ON_TRIAL = "new release on trial"
    ROLLED_BACK = "serving; an update was rolled back"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class UnitState:
    """Of fabstir-node.service, as `systemctl show` has it; empty where there is no systemd."""

    active: str = ""
    sub: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known without asking the node."""

    hostname: str
    version: str
    slot: str
    addresses: tuple[str, ...]
    has_settings: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """One look; None: it was not told."""

    machine: Machine
    unit: UnitState = UnitState()
    report: ProvisionReport | None = None
    processes: tuple[ProcessStatus, ...] = ()
    update: UpdateView | None = None
    network: NetworkView | None = None
    host: HostView | None = None
    sessions: tuple[SessionView, ...] | None = None
    provisioning: UnitState = UnitState()
    """Where it left no report."""
    warning: str = ""
    """What the settings show to be wrong although the node runs."""


@dataclass(frozen=True, slots=True)
class ConsoleStatus:
    """All that is shown."""

    phase: Phase
    title: str
    """Of the machine: name and version."""
    hostname: str
    detail: str = ""
    progress: str = ""
    """Changes often: a line-by-line console leaves it out."""
    facts: tuple[tuple[str, str], ...] = ()
    next_steps: tuple[str, ...] = ()
    code: str = ""
    """What the QR code says; "" for none."""
    code_label: str = ""


def status_of(seen: Seen) -> ConsoleStatus:
    """Judge one look."""
    phase, detail, progress = _phase(seen)
    machine = seen.machine
    code, label = _code(seen, phase)
    slot = f", slot {machine.slot}" if machine.slot and machine.slot != machine.version else ""
    return ConsoleStatus(
        phase=phase,
        title=f"Fabstir node {machine.version}{slot}",
        hostname=machine.hostname,
        detail=detail,
        progress=progress,
        facts=tuple(_facts(seen, phase)),
        next_steps=tuple(_next_steps(seen, phase)),
        code=code,
        code_label=label,
    )


def _phase(seen: Seen) -> tuple[Phase, str, str]:
    if not seen.machine.has_settings:
        why = _without_settings(seen)
        return (Phase.FAULT if why else Phase.WAITING), why, ""
    if seen.update is not None and seen.update.phase in INSTALLING:
        return Phase.UPDATING, *_installing(seen.update)
    fault = _fault(seen)
    if fault:
        return Phase.FAULT, fault, ""
    if seen.update is not None and seen.update.phase in ON_TRIAL:
        detail = f"{seen.update.candidate} stays when it is healthy, else {seen.update.current}"
        return Phase.ON_TRIAL, f"{detail} comes back", ""
    if _is_stopped(seen):
        return Phase.STOPPED, "no process of the node runs", ""
    waiting = [one for one in seen.processes if not one.ready]
    if waiting or not seen.processes:
        return _starting(waiting)
    if seen.update is not None and seen.update.phase == "rolled_back":
        return Phase.ROLLED_BACK, seen.update.reason, ""
    return Phase.SERVING, "", ""


def _without_settings(seen: Seen) -> str:
    """Why there are none; empty when no CONFIG was there yet."""
    if seen.report is not None and seen.report.findings:
        return "CONFIG was refused"
    return NOT_READ if seen.provisioning.active in ("failed", "inactive") else ""


def _installing(update: UpdateView) -> tuple[str, str]:
    progress = ""
    if update.phase == "downloading" and update.download_bytes:
        progress = f"{100 * update.downloaded_bytes // update.download_bytes} %"
    return f"{update.phase} {update.candidate}", progress


def _is_up(seen: Seen) -> bool:
    return any(one.state != "UNKNOWN" or one.ready is not None for one in seen.processes)


def _is_stopped(seen: Seen) -> bool:
    """Nothing runs and no unit is about to start it; a stopped unit is a fault, see above."""
    return not seen.unit.active and not _is_up(seen)


def _fault(seen: Seen) -> str:
    for process in seen.processes:
        if process.state in ("FATAL", "BACKOFF"):
            return f"{process.process} cannot run: {process.detail}"
    if _is_held(seen):
        return HELD
    if _is_up(seen):
        return ""
    if seen.unit.active == "failed" or seen.unit.sub == "auto-restart" or seen.unit.restarts:
        return "the node ends as soon as it is started"
    if seen.unit.active == "inactive":
        return "the node is stopped"
    return ""


def _is_held(seen: Seen) -> bool:
    return seen.host is not None and bool(seen.host.held)


def _starting(waiting: Sequence[ProcessStatus]) -> tuple[Phase, str, str]:
    names = [one.process for one in waiting]
    if names and all(name.startswith("inference") for name in names):
        return Phase.LOADING, waiting[0].detail, ""
    answering = [one for one in waiting if one.ready is not None]
    detail = "; ".join(f"{one.process}: {one.detail}" for one in answering if one.detail)
    return Phase.STARTING, detail, ""


def _facts(seen: Seen, phase: Phase) -> Iterator[tuple[str, str]]:
    report = seen.report
    wallet = str(seen.host.address) if seen.host else report.wallet if report else ""
    peer = seen.network.peer_id if seen.network else report.peer_id if report else ""
    if report is not None:
        yield from (("refused", finding) for finding in report.findings)
    yield "wallet", wallet
    if seen.host is not None:
        registered = "registered" if seen.host.is_registered else "NOT registered"
        yield "chain", f"{seen.host.chain_id}, {registered} on the marketplace"
    yield "peer id", peer
    if seen.network is not None:
        yield "reachable", seen.network.reachability
    yield "warning", seen.warning
    yield "network", ", ".join(seen.machine.addresses) or "no address"
    if seen.sessions is not None:
        yield "earned", earned(seen.sessions, seen.host)
    if phase is not Phase.SERVING and report is not None:
        yield "ssh key", report.ssh_fingerprint
    if phase is Phase.WAITING and report is not None:
        yield "seal to", report.sealing_key
    if seen.update is not None and seen.update.available:
        yield "update", f"{seen.update.available} is available"


def earned(sessions: Sequence[SessionView], host: HostView | None) -> str:
    """The host's share of settled sessions, by asset."""
    usdc = host.usdc if host else ""
    usd = sum(int(one.host_earnings) for one in sessions if one.asset == usdc)
    native = sum(int(one.host_earnings) for one in sessions if one.asset != usdc)
    parts = [f"{_coins(usd, USD_DECIMALS)} USD"]
    if native:
        parts.append(f"{_coins(native, NATIVE_DECIMALS)} native coin")
    count = len(sessions)
    running = sum(1 for one in sessions if one.phase in OPEN_SESSIONS)
    return f"{' and '.join(parts)} in {count} sessions, {running} open"


def _coins(amount: int, decimals: int) -> str:
    return f"{Decimal(amount).scaleb(-decimals).normalize():f}"


def _next_steps(seen: Seen, phase: Phase) -> Iterator[str]:
    match phase:
        case Phase.WAITING:
            yield "on your computer: fabstir-node provision make --out CONFIG"
            yield "copy its files onto a FAT medium with the label CONFIG"
            yield "put the medium in and start this machine again"
        case Phase.STOPPED:
            yield "start it: fabstir-node run"
        case Phase.FAULT:
            yield from _steps_out_of(seen)
        case Phase.ROLLED_BACK:
            yield "nothing: this version is not installed again"
        case _ if seen.host is not None and not seen.host.is_registered:
            yield "send FAB and gas to the wallet, then: fabstir-node host register"
        case _ if seen.report is not None and seen.report.findings:
            yield "the new CONFIG was refused, the one before goes on: correct it"
        case _:
            return


def _steps_out_of(seen: Seen) -> Iterator[str]:
    """Of a fault."""
    if seen.provisioning.active:
        yield "start this machine again; is its disk whole?"
        yield "a login tells more: journalctl -b -u fabstir-provision"
    elif not seen.machine.has_settings:
        yield "correct what is refused; fabstir-node provision check tells the same"
        yield "start this machine again"
    elif seen.unit.active == "inactive" and not _is_up(seen):
        yield "start it: systemctl start fabstir-node"
    elif _is_held(seen):
        yield "get it back: stop the node, fabstir-node backup restore latest --replace"
        yield "or give it up: fabstir-node backup adopt"
    else:
        yield "journalctl -u fabstir-node tells more; fabstir-node doctor looks for the cause"


def _code(seen: Seen, phase: Phase) -> tuple[str, str]:
    if phase is Phase.WAITING:
        key = seen.report.sealing_key if seen.report else ""
        return key.upper(), "key to seal secrets to"
    wallet = str(seen.host.address) if seen.host else seen.report.wallet if seen.report else ""
    return (f"ethereum:{wallet}", "wallet of the host") if wallet else ("", "")
