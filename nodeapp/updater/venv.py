"""Releases as directories, for any Linux: `releases/<version>` and the link `current`.

    <root>/current -> releases/0.2.0         the blessed release; the launcher runs from it
    <root>/releases/0.2.0/source             what was signed
    <root>/releases/0.2.0/venv               its environment, made by its own set-up
    <root>/releases/0.2.0/complete           written last: without it the directory is nothing
    <root>/update.json                       the journal

Rules: a directory with `complete` never changes; the link changes only when a release is blessed,
so at every moment it leads to a whole one; which release is on trial stands in the journal alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.release import Release, version_key
from nodeapp.service.config import process_environment
from nodeapp.store.atomic import swap_link, sync_directory, sync_file_system, write_whole
from nodeapp.store.digest import sha256_of
from nodeapp.updater.backend import ReleaseUnusable
from nodeapp.updater.version import boot_id

MAX_UNPACKED_BYTES = 4 << 30
MAX_MEMBERS = 200_000
SETUP_SECONDS = 3600.0
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "XDG_CACHE_HOME", "FABSTIR_CACHE")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the releases lie."""

    root: Path

    @property
    def current(self) -> Path:
        """Link to the blessed release."""
        return self.root / "current"

    @property
    def journal(self) -> Path:
        """See update_journal.py."""
        return self.root / "update.json"

    @property
    def releases(self) -> Path:
        """One directory a version."""
        return self.root / "releases"

    def release(self, version: str) -> Path:
        """A release's directory; the version is checked, since it becomes a path."""
        version_key(version)
        return self.releases / version

    def command(self, version: str) -> Path:
        """Its fabstir-node."""
        return self.release(version) / "venv" / "bin" / "fabstir-node"

    def is_complete(self, version: str) -> bool:
        """It was brought to the disk as a whole."""
        return (self.release(version) / "complete").is_file()

    def current_version(self) -> str:
        """Where the link leads; "" when there is none or it leads nowhere."""
        try:
            version = self.current.readlink().name
            return version if self.is_complete(version) else ""
        except (OSError, InvalidRequest):
            return ""


Prepare = Callable[[Path, str], None]
"""(release directory, version): make `venv` from `source`. Raises as `install` does."""


class VenvBackend:
    """See the module."""

    def __init__(
        self, layout: Layout, restart: Callable[[], None], prepare: Prepare | None = None
    ) -> None:
        self._layout = layout
        self._restart = restart
        self._prepare = prepare or run_own_setup

    @property
    def kind(self) -> str:
        """One .tar.gz with the sources."""
        return "venv"

    @property
    def keeps_two(self) -> bool:
        """The previous one stays until another is blessed."""
        return False

    def running(self) -> str:
        """Which release's directory this interpreter belongs to."""
        # Started through the link, sys.prefix goes through it as well.
        prefix, releases = Path(sys.prefix).resolve(), self._layout.releases.resolve()
        return next((part.name for part in prefix.parents if part.parent == releases), "")

    def install(self, release: Release, files: tuple[Path, ...]) -> None:
        """Unpack, let it set itself up, bring it to the disk, mark it complete."""
        target = self._layout.release(release.version)
        if self._layout.is_complete(release.version):
            return
        if len(files) != 1:
            raise ReleaseUnusable(f"{release.version} has {len(files)} files, expected one archive")
        try:
            self._fill(target, release, files[0])
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise Unavailable(
                f"release {release.version} cannot be unpacked to {target}: {error.strerror}"
            ) from error
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def _fill(self, target: Path, release: Release, archive: Path) -> None:
        found = sha256_of(archive)
        if found != release.artefacts[0].sha256:
            archive.unlink()
            raise Unavailable(f"{archive} changed on the disk; it was deleted, apply it again")
        if target.exists():
            shutil.rmtree(target)
        (target / "source").mkdir(mode=0o755, parents=True)
        unpack(archive, target / "source")
        self._prepare(target, release.version)
        sync_file_system(target)
        write_whole(target / "complete", f"{found}\n".encode())
        sync_directory(self._layout.releases)

    def arm(self, version: str) -> None:
        """The journal does it; here only what it says is checked."""
        if not self._layout.is_complete(version):
            raise Unavailable(f"release {version} is not complete in {self._layout.releases}")

    def boot(self) -> str:
        """The tree's: the launcher starts another one for a trial."""
        return f"{boot_id()} {os.getppid()}"

    def restart(self) -> bool:
        """End the tree; the launcher goes on. Nobody would when this is no release of its own."""
        if not self.running():
            return False
        self._restart()
        return True

    def bless(self, version: str, previous: str) -> None:
        """Swap the link, then remove what is older."""
        self._point_at(version)
        self._remove_all_but({version, previous})

    def fall_back(self, version: str, failed: str) -> None:
        """The link never left `version`; it is set again in case somebody moved it."""
        if version:
            self._point_at(version)
        if failed and failed != version:
            self._remove(failed)

    def _point_at(self, version: str) -> None:
        self.arm(version)
        if self._layout.current_version() != version:
            swap_link(self._layout.current, f"releases/{version}")

    def _remove_all_but(self, kept: set[str]) -> None:
        for directory in self._layout.releases.iterdir():
            if directory.name not in kept:
                self._remove(directory.name)

    def _remove(self, version: str) -> None:
        directory = self._layout.release(version)
        (directory / "complete").unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)


def unpack(archive: Path, into: Path) -> None:
    """Regular files, directories and links that stay inside; bounded.

    Raises:
        ReleaseUnusable: not such an archive.
        OSError: no room.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for number, member in enumerate(tar):
                total += member.size
                if number >= MAX_MEMBERS or total > MAX_UNPACKED_BYTES:
                    raise ReleaseUnusable(f"{archive.name} unpacks to more than is allowed")
                tar.extract(member, into, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ReleaseUnusable(f"{archive.name} cannot be unpacked: {error}") from error


def run_own_setup(directory: Path, version: str) -> None:
    """`python -m appliance.setup` of the release: every package pinned with hashes in its lock."""
    source, venv = directory / "source", directory / "venv"
    environment = {**process_environment(KEPT_VARIABLES), "FABSTIR_VENV": str(venv)}
    python = (
        Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    )
    log = directory / "setup.log"
    with log.open("wb") as output:
        done = _run([str(python), "-m", "appliance.setup"], source, environment, output)
    if done != 0:
        words = log.read_text("utf-8", errors="replace").strip().splitlines() or ["no output"]
        raise Unavailable(f"set-up of release {version} ended with {done}: {words[-1][:200]}")
    says = subprocess.run(
        [venv / "bin" / "python", "-c", "import nodeapp; print(nodeapp.__version__)"],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if says.stdout.strip() != version:
        raise ReleaseUnusable(f"release {version} calls itself {says.stdout.strip()[:64]!r}")


def _run(command: list[str], source: Path, environment: dict[str, str], output: object) -> int:
    try:
        done = subprocess.run(
            command,
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            timeout=SETUP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"set-up took longer than {SETUP_SECONDS:g} s") from error
    return int(done.returncode)
