"""Audit logs out of a backup: each up to the record that the manifest says it ended with.

A log that does not lead to that record is put back as it is: `audit verify` tells what is wrong
with it, and a restore must not fail for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.audit import Head
from nodeapp.core.audit_chain import read_chain
from nodeapp.security.audit import is_process, read_files
from nodeapp.store.atomic import write_whole
from nodeapp.updater.rehearsal import Fetched
from nodeapp.wire.ipc_updater import RestoreStep


@dataclass(frozen=True, slots=True)
class RestoredLog:
    """One process's log, as it will be."""

    process: str
    target: Path
    files: tuple[tuple[str, bytes], ...]
    detail: str

    def step(self) -> RestoreStep:
        """For the preview."""
        action = "replace" if self.target.exists() else "create"
        return RestoreStep(f"audit log of {self.process}", str(self.target), action, self.detail)

    def carry_out(self, stamp: str) -> None:
        """Move aside what is here, then write.

        Raises:
            Unavailable: the disk is full.
        """
        if self.target.exists():
            # No process has such a name: it is not taken for a log.
            aside = f"{self.target.name}.before-restore-{stamp}"
            self.target.rename(self.target.with_name(aside))
        for name, content in self.files:
            write_whole(self.target / name, content, mode=0o600)


def restored_logs(fetched: Fetched, root: Path) -> tuple[RestoredLog, ...]:
    """Of a backup that was fetched whole; none of one without audit logs.

    Raises:
        Unavailable: what was fetched cannot be read.
    """
    if fetched.audit is None:
        return ()
    return tuple(
        _log(fetched.audit, process, head, root / process)
        for process, head in sorted(fetched.manifest.audit.items())
        if is_process(process) and (fetched.audit / process).is_dir()
    )


def _log(source: Path, process: str, head: Head, target: Path) -> RestoredLog:
    files = read_files(source, process)
    chain = read_chain(process, files)
    if chain.digests.get(head.seq) != head.sha256:
        why = chain.fault.text() if chain.fault else f"record {head.seq} is not as it was saved"
        return RestoredLog(process, target, tuple(files), f"DOES NOT HOLD: {why}")
    kept, left = [], head.seq - chain.first + 1
    for name, content in files:
        lines = content.splitlines(keepends=True)[:left]
        left -= len(lines)
        if lines:
            kept.append((name, b"".join(lines)))
    return RestoredLog(process, target, tuple(kept), f"up to record {head.seq}")
