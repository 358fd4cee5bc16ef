"""What a check of a CONFIG gathers: what is wrong, and what would be taken over."""

from __future__ import annotations

from dataclasses import dataclass, field

from nodeapp.provision.findings import Finding
from nodeapp.provision.machine import MachineConfig
from nodeapp.service.settings import Settings


@dataclass(slots=True)
class Checked:
    """A CONFIG as it would be taken over; not to be, while there are findings."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Worth knowing; no reason to refuse."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the generation, by name."""
    secrets: set[str] = field(default_factory=set)
    machine: MachineConfig = field(default_factory=MachineConfig)
    networks: dict[str, str] = field(default_factory=dict)
    """For systemd-networkd, by file name."""
    settings: Settings | None = None
    wallet: str = ""

    def need(self, file: str, problem: str, remedy: str, key: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(file, problem, remedy, key))
