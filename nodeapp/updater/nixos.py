"""A NixOS machine that is not the flashed image: generations, built and switched by nixos-rebuild.

The machine's flake names this project as an input; the release is a tag of it. Root's own
configuration says where that input comes from, so the updater can only choose a version.
"""

from __future__ import annotations

from pathlib import Path

from nodeapp.core.release import Release, is_newer
from nodeapp.updater.root_helper import Ask, ask_helper
from nodeapp.updater.version import boot_id


class NixosBackend:
    """See the module; the helper does the work."""

    def __init__(self, version: str, ask: Ask = ask_helper) -> None:
        """Args: `version` is the running one."""
        self._version = version
        self._ask = ask

    @property
    def kind(self) -> str:
        """The manifest names one small file, so that a release can be offered to NixOS or not."""
        return "nixos"

    @property
    def keeps_two(self) -> bool:
        """A generation more takes none away."""
        return False

    def running(self) -> str:
        """The version of this package."""
        return self._version

    def boot(self) -> str:
        """The kernel's name of it."""
        return boot_id()

    def install(self, release: Release, files: tuple[Path, ...]) -> None:  # noqa: ARG002
        """Build the generation; it is not the default yet. Nix fetches, `files` are not needed."""
        self._ask("nixos-build", release.version)

    def arm(self, version: str) -> None:
        """Make it the default of the next boot; an older one is the generation that ran it."""
        if is_newer(version, self._version):
            self._ask("nixos-boot", version)
        else:
            self._ask("nixos-back", version)

    def restart(self) -> bool:
        """Reboot."""
        self._ask("reboot")
        return True

    def bless(self, version: str, previous: str) -> None:
        """The default generation is the running one already."""

    def fall_back(self, version: str, failed: str) -> None:
        """The generation that ran `version` is the default again, and what starts now."""
        if version:
            self._ask("nixos-back", version)
        if version and self._version == failed:
            self._ask("reboot")
