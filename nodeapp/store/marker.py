"""Where it is noted which file is an account's journal; kept beside the key, it outlives it.

Two lines: the account, the journal's path (older nodes wrote no second one). With it a journal that
is lost, or looked for in another state directory, is never begun anew: it could pay or claim
twice. Nothing here removes a note.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.store.atomic import write_whole

LOST = (
    "restore it from a backup (`fabstir-node backup restore`), because starting without it could"
    " pay or claim twice"
)


@dataclass(frozen=True, slots=True)
class Marker:
    """The note of one account on one chain."""

    path: Path

    def exists(self) -> bool:
        """Whether a journal was once made."""
        return self.path.exists()

    def read(self) -> tuple[str, Path | None]:
        """Account and journal; "" and None for what is not noted, or not readable for this user."""
        try:
            lines = self.path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return "", None
        has_path = len(lines) > 1 and lines[1].startswith("/")
        return (lines[0] if lines else ""), (Path(lines[1]) if has_path else None)

    def trouble(self, journal: Path, owner: str, *, must_exist: bool = False) -> str:
        """Why this journal must not be opened or begun; "" when it may.

        Args:
            journal: the file that the settings lead to.
            owner: its account.
            must_exist: it is known from elsewhere that there was one.
        """
        account, noted = self.read()
        here = journal.absolute()
        if _is_of_another(account, owner):
            return "" if journal.exists() else _replaced(here, owner, account, self.path)
        is_there = noted is not None and _is_other(noted, journal)
        if journal.exists():
            return _two(here, noted, owner, self.path) if noted is not None and is_there else ""
        if not (must_exist or self.exists()):
            return ""
        missing = f"journal {here} of {owner} is missing although it existed"
        if noted is None or noted == here:
            return f"{missing}; {LOST}"
        return (
            f"{missing}: it is {noted}, says {self.path}; run with --state-dir"
            f" {noted.parent.parent} (node.state_dir), or move it while no node runs:"
            f" mv {noted}* {here.parent}/"
            f"{'' if is_there else f' (it cannot be seen by this process; if it is gone, {LOST})'}"
        )

    def note(self, journal: Path, owner: str) -> None:
        """Write down that the account's journal is this file; another account's note stays.

        Raises:
            Unavailable: nothing was noted yet and nothing can be written.
        """
        account, noted = self.read()
        wanted = f"{owner}\n{journal.absolute()}\n"
        if not self.exists():
            write_whole(self.path, wanted.encode())
        elif noted != journal.absolute() and not _is_of_another(account, owner):
            # It may be shown read-only; that there is a journal is noted, where it was also.
            with contextlib.suppress(Unavailable):
                write_whole(self.path, wanted.encode())


def _is_of_another(account: str, owner: str) -> bool:
    return account not in {"", owner}


def _replaced(journal: Path, owner: str, account: str, marker: Path) -> str:
    return (
        f"no journal is begun for {owner} at {journal}: {marker} notes the one of {account}, whose"
        " key was in this keystore file before; give each key a file name of its own"
    )


def _is_other(noted: Path, journal: Path) -> bool:
    """Whether that file is there and another one."""
    try:
        return noted.exists() and not (journal.exists() and noted.samefile(journal))
    except OSError:
        # Somebody else's directory: what cannot be looked at cannot be opened either.
        return False


def _two(journal: Path, other: Path, owner: str, marker: Path) -> str:
    return (
        f"{owner} has two journals: {journal} and {other}, and {marker} says the second one; with"
        f" two it could pay or claim twice. Run with --state-dir {other.parent.parent}"
        " (node.state_dir), or move the one away that is older, while no node runs"
    )


def check(marker: Marker, journal: Path, owner: str, *, must_exist: bool = False) -> None:
    """Refuse what `Marker.trouble` finds.

    Raises:
        Corrupt: the journal is missing although it existed, or there is a second one.
    """
    trouble = marker.trouble(journal, owner, must_exist=must_exist)
    if trouble:
        raise Corrupt(trouble)
