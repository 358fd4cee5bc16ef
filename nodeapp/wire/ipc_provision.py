"""What provisioning tells about a machine: a file that everybody on it may read."""

from __future__ import annotations

from typing import Literal

from nodeapp.wire.ipc import Message

Outcome = Literal["waiting", "applied", "unchanged", "refused"]


class ProvisionReport(Message, frozen=True):
    """Of the last run; empty texts where there is nothing to tell."""

    outcome: Outcome
    findings: tuple[str, ...] = ()
    """Why a CONFIG was refused; each with its remedy."""
    notes: tuple[str, ...] = ()
    is_configured: bool = False
    """A configuration counts, be it of an earlier CONFIG."""
    generation: str = ""
    hostname: str = ""
    machine_id: str = ""
    peer_id: str = ""
    wallet: str = ""
    ssh_fingerprint: str = ""
    sealing_key: str = ""
    """Public: secrets for this machine are sealed to it."""
