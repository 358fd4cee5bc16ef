"""A machine whose state cannot be mounted: its owner gets in, and nothing of CONFIG is used up.

What provisioning keeps would lie in memory: a CONFIG that was taken over there, and its secrets
wiped from the medium, would be gone with the next boot.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from nodeapp.core.errors import NodeError
from nodeapp.provision.activate import activate
from nodeapp.provision.check import read_machine_files
from nodeapp.provision.checked import Checked
from nodeapp.provision.findings import Finding
from nodeapp.provision.generations import Held, Manifest
from nodeapp.provision.identities import HOST_KEY, ssh_host_key
from nodeapp.provision.medium import Medium, read_medium
from nodeapp.provision.parts import AUTHORIZED_KEYS
from nodeapp.provision.places import Places
from nodeapp.store.atomic import write_whole
from nodeapp.wire.ipc_provision import ProvisionReport

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
MOUNTS = Path("/proc/self/mountinfo")


def is_kept(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether what is written there outlives a reboot; proc_pid_mountinfo(5) has the format."""
    here, kind = -1, ""
    for line in mounts.read_text("utf-8", errors="replace").splitlines():
        mounted, _, source = line.partition(" - ")
        place = Path(mounted.split()[4])
        # Of two on one place the later one lies on top.
        if path.is_relative_to(place) and len(place.parts) >= here:
            here, kind = len(place.parts), source.split()[0]
    return kind not in IN_MEMORY


def let_in(places: Places, media: Path | None) -> ProvisionReport:
    """Network, name and logins as CONFIG says now; the node gets no settings, so it stays off.

    Raises:
        Unavailable: not even the report can be written.
    """
    finding = Finding(
        "this machine",
        f"{places.keys} is not mounted: nothing was taken over from CONFIG and nothing wiped",
        "look at `systemctl --failed` and `journalctl -b`; a disk that fails must be replaced",
    )
    findings, notes, fingerprint = [finding], [], ""
    checked = Checked()
    places.told.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        medium = read_medium(media) if media is not None else Medium({})
        read_machine_files(medium.files, checked)
        findings += [*medium.findings, *checked.findings]
        notes += activate(places, _held(places, medium, checked), with_node=False)
        fingerprint = ssh_host_key(places.keys / HOST_KEY)
    except NodeError as error:
        notes.append(error.message)
    except OSError as error:
        notes.append(f"{error.filename}: {error.strerror}")
    report = ProvisionReport(
        outcome="refused",
        findings=tuple(one.text() for one in findings),
        notes=tuple(notes),
        is_configured=False,
        hostname=checked.machine.hostname,
        ssh_fingerprint=fingerprint,
    )
    return tell(places, report)


def _held(places: Places, medium: Medium, checked: Checked) -> Held:
    """Of this boot only, without any secret."""
    directory = places.run / "fabstir-rescue"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if AUTHORIZED_KEYS in medium.files:
        write_whole(directory / AUTHORIZED_KEYS, medium.files[AUTHORIZED_KEYS])
    return Held(directory, Manifest(hostname=checked.machine.hostname, networks=checked.networks))


def tell(places: Places, report: ProvisionReport) -> ProvisionReport:
    """Write the report where everybody may read it. Raises: Unavailable."""
    write_whole(places.told / "report.json", msgspec.json.encode(report))
    return report
