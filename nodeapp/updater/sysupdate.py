"""The flashed image: partitions A and B filled by systemd-sysupdate, the UKI last.

What the updater downloaded lies in one directory with the release's own SHA256SUMS and its
signature; the helper lets systemd-sysupdate read it from there, which checks both against root's
keyring. Boot counting and blessing are the boot loader's and systemd's.
"""

from __future__ import annotations

from pathlib import Path

from nodeapp.core.release import Release, is_newer
from nodeapp.updater.backend import ReleaseUnusable
from nodeapp.updater.root_helper import Ask, ask_helper
from nodeapp.updater.version import boot_id

REQUIRED = ("SHA256SUMS", "SHA256SUMS.gpg")


class SysupdateBackend:
    """See the module; the helper does the work."""

    def __init__(self, image_version: str, ask: Ask = ask_helper) -> None:
        """Args: `image_version` is IMAGE_VERSION of the running image."""
        self._image_version = image_version
        self._ask = ask

    @property
    def kind(self) -> str:
        """Partitions, UKI, SHA256SUMS and SHA256SUMS.gpg."""
        return "sysupdate"

    @property
    def keeps_two(self) -> bool:
        """Slots A and B."""
        return True

    def running(self) -> str:
        """The image that was booted."""
        return self._image_version

    def boot(self) -> str:
        """The kernel's name of it."""
        return boot_id()

    def install(self, release: Release, files: tuple[Path, ...]) -> None:
        """Fill the partitions of the slot that does not run."""
        missing = set(REQUIRED) - {path.name for path in files}
        if missing:
            raise ReleaseUnusable(f"{release.version} comes without {', '.join(sorted(missing))}")
        self._ask("fill", release.version)

    def arm(self, version: str) -> None:
        """Install its UKI with tries left; a rollback's is there already."""
        self._ask("arm" if is_newer(version, self._image_version) else "prefer", version)

    def restart(self) -> bool:
        """Reboot."""
        self._ask("reboot")
        return True

    def bless(self, version: str, previous: str) -> None:
        """systemd-bless-boot did it; the other slot is kept as it is."""

    def fall_back(self, version: str, failed: str) -> None:
        """Boot the old slot when the failed one still runs."""
        if self._image_version == failed and version:
            self._ask("prefer", version)
            self._ask("reboot")
