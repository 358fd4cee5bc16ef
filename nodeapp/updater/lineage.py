"""Which repository and which history a node's backups belong to, and what it remembers of them.

Rules of this file: a node on a new disk begins an empty journal by itself, and a backup of that
must never become the latest one before its operator has decided; nor must a backup go to whatever
lies where the repository used to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.retention import age_text
from nodeapp.store.atomic import write_whole
from nodeapp.updater.restic import Restic, Stored

Intent = Literal["usual", "init", "adopt"]
"""init: into a new repository; adopt: this journal's history follows another one's backups."""
_FILE = "backup.json"
_TELL_CLOCK_SECONDS = 300.0
_NO_REPOSITORY = ("no such file", "does not exist")
"""As restic says it, whatever the back end; not when it cannot be reached."""


class OtherHistory(Rejected):
    """The account's backups are of another journal than this node's."""


class LastGood(msgspec.Struct, frozen=True):
    """What the process remembers over a restart."""

    at: float = 0.0
    """Unix seconds; 0: never."""
    id: str = ""
    content: str = ""
    sessions: int = 0
    pruned_at: float = 0.0
    repository: str = ""
    """Its own id; "": not known."""
    history: str = ""
    """Of the journal that was backed up or restored; "": not known."""
    has_keys: bool = True
    clock_behind_seconds: float = 0.0
    """How much later the backup before it claims to have been made."""

    def notes(self) -> str:
        """What people must know although the backup is good; begins with a blank or is empty."""
        keys = "" if self.has_keys else " WITHOUT keys"
        behind = self.clock_behind_seconds
        clock = f", the clock is {age_text(behind)} behind the backup before it" if behind else ""
        return keys + clock


def remembered(directory: Path) -> LastGood:
    """What was written; nothing when it is missing or cannot be read."""
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=LastGood)
    except (FileNotFoundError, msgspec.DecodeError):
        return LastGood()


def remember(directory: Path, good: LastGood) -> None:
    """Write it, whole or not at all.

    Raises:
        Unavailable: the disk is full.
    """
    write_whole(directory / _FILE, msgspec.json.encode(good))


async def opened(restic: Restic, before: LastGood) -> tuple[str, list[Stored]]:
    """The repository's id and what it holds; made when this node never had one.

    Raises:
        Rejected: it is not the one that the last backup went to.
        Unavailable: it does not answer.
    """
    if not (before.at or before.repository):
        return await restic.prepare(), await restic.stored()
    try:
        stored = await restic.stored()
        if before.repository and before.id and any(one.id.startswith(before.id) for one in stored):
            return before.repository, stored
        identity = await restic.identity()
    except Unavailable as error:
        if not any(words in error.message.lower() for words in _NO_REPOSITORY):
            raise
        raise Rejected(f"{error.message}: {_hint(restic)}") from error
    if identity != (before.repository or identity):
        raise Rejected(
            f"repository {identity[:8]} is not {before.repository[:8]}, which the last backup went"
            f" to: {_hint(restic)}"
        )
    return identity, stored


def check_history(before: LastGood, history: str, account: str, stored: Sequence[Stored]) -> None:
    """Whether this journal goes on from the account's backups.

    Args:
        before: what this node remembers.
        history: of its journal.
        account: the host.
        stored: the account's backups, oldest first.

    Raises:
        OtherHistory: an operator must decide.
    """
    is_known = history in {before.history, *(one.history for one in stored)}
    # Older programs told no history: what they made here is this journal's.
    if not stored or is_known or (before.at and not before.history):
        return
    newest = stored[-1]
    raise OtherHistory(
        f"not backed up: the repository holds {len(stored)} backups of {account}, the newest"
        f" {newest.id[:8]} of {newest.made_at[:19]}, and this node's journal does not go on from"
        " them (a new disk?): stop the node and get it back with `fabstir-node backup restore"
        " latest --replace`, or say `fabstir-node backup adopt` to go on with the journal that is"
        " here"
    )


def clock_behind(now: float, stored: Sequence[Stored]) -> float:
    """How far the newest backup lies in the future; 0.0 when that is nothing to tell."""
    behind = stored[-1].unix_seconds - now if stored else 0.0
    return behind if behind > _TELL_CLOCK_SECONDS else 0.0


def _hint(restic: Restic) -> str:
    return (
        f"is the disk of {restic.repository} mounted? `fabstir-node backup init` makes a new"
        " repository there"
    )
