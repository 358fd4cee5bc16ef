"""What a kind of installation must be able to do for an update."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nodeapp.core.release import Release


class ReleaseUnusable(Exception):
    """The release itself is wrong: another try ends the same. `reason` is shown to people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UpdateBackend(Protocol):
    """Blocking: call through a thread. Every method may be repeated after an interruption."""

    @property
    def kind(self) -> str:
        """Key of its artefacts in the channel's manifest."""
        ...

    @property
    def keeps_two(self) -> bool:
        """There is room for two releases only: to install one is to lose the previous one."""
        ...

    def running(self) -> str:
        """The version that runs now; "" when it is not one of its releases."""
        ...

    def boot(self) -> str:
        """What another start of the machine, or of the launcher, makes another; "" if unknown."""
        ...

    def install(self, release: Release, files: tuple[Path, ...]) -> None:
        """Fill the slot that does not run; nothing that starts at the next boot changes.

        Args:
            release: what to install.
            files: its artefacts, in the order of `release.artefacts`.

        Raises:
            ReleaseUnusable: the release is wrong.
            Unavailable: no room, no network, or a tool failed; may work later.
        """
        ...

    def arm(self, version: str) -> None:
        """Let the next boot try this version. Raises: Unavailable."""
        ...

    def restart(self) -> bool:
        """End the running node, so that the next boot comes; False: a person must do it.

        Raises:
            Unavailable: it cannot be ended.
        """
        ...

    def bless(self, version: str, previous: str) -> None:
        """This version starts from now on; older ones than `previous` go. Raises: Unavailable."""
        ...

    def fall_back(self, version: str, failed: str) -> None:
        """This version starts from now on; the failed one goes. Raises: Unavailable."""
        ...
