"""A restic repository: local directory, SFTP, S3-compatible, whatever restic can reach.

Rules of this file: the only one that calls restic; secrets go by file and environment, never by
argument. Needs restic 0.14 or newer. Which backup is newer is told by a number in its tags: a clock
can be wrong.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from nodeapp.core.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from nodeapp.service.config import credential_path
from nodeapp.service.settings import UpdaterSettings
from nodeapp.updater.command import found_program, run_program

TAG = "fabstir-node"
_HISTORY, _SEQUENCE = "history-", "sequence-"
QUICK_SECONDS = 120.0
TRANSFER_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """One backup in the repository."""

    id: str
    made_at: str
    """RFC 3339, as restic writes it: sorts as text inside one zone."""
    account: str
    """Chain account of the host."""
    paths: tuple[Path, ...]
    history: str = ""
    """Of the first chain's journal, see store/backups.py; "": made by an older program."""
    sequence: int = 0
    """Counts an account's backups from 1; 0: made by an older program."""

    @property
    def unix_seconds(self) -> float:
        """When it was made, by the clock of then."""
        return dt.datetime.fromisoformat(self.made_at).timestamp() if self.made_at else 0.0


class _Config(msgspec.Struct, frozen=True):
    id: str


class _Snapshot(msgspec.Struct, frozen=True):
    id: str
    time: str
    paths: list[str]
    tags: list[str] = []


class _Summary(msgspec.Struct, frozen=True):
    message_type: str = ""
    snapshot_id: str = ""
    data_added: int = 0
    total_bytes_processed: int = 0


class Restic:
    """One repository with its password."""

    def __init__(
        self,
        repository: str,
        password_file: Path,
        environment: dict[str, str],
        cache: Path,
        options: Sequence[str] = (),
    ) -> None:
        self.repository = repository
        self._password_file = password_file
        self._environment = environment
        self._cache = cache
        self._options = options

    async def identity(self) -> str:
        """The repository's own id: another one is another repository, whatever its address is.

        Raises:
            Unavailable: not there, not reachable, or the password is wrong.
        """
        return msgspec.json.decode(await self._run("cat", "config"), type=_Config).id

    async def prepare(self) -> str:
        """Make the repository if there is none; its id.

        Raises:
            Unavailable: not reachable, or the password is wrong.
        """
        try:
            return await self.identity()
        except Unavailable as error:
            # Wrong password, no network: `init` fails as well, with what is really wrong.
            try:
                await self._run("init")
            except Unavailable as second:
                raise (error if "already" in second.message else second) from second
        return await self.identity()

    async def save(self, backup: Stored) -> tuple[str, int]:
        """Back its paths up as one; the beginning of the id it got and the bytes that were new."""
        tags = f"{TAG},{backup.account},{_HISTORY}{backup.history},{_SEQUENCE}{backup.sequence}"
        output = await self._run(
            "backup", "--json", "--host", TAG, "--tag", tags, *map(str, backup.paths),
            seconds=TRANSFER_SECONDS,
        )  # fmt: skip
        for line in reversed(output.splitlines()):
            summary = msgspec.json.decode(line, type=_Summary)
            if summary.message_type == "summary" and summary.snapshot_id:
                return summary.snapshot_id, summary.data_added
        raise Corrupt("restic told no id for the backup it made")

    async def stored(self) -> list[Stored]:
        """All of ours, oldest first."""
        output = await self._run("snapshots", "--json", "--tag", TAG)
        found = msgspec.json.decode(output, type=list[_Snapshot] | None) or []
        backups = [
            Stored(
                one.id,
                one.time,
                next((tag for tag in one.tags if tag.startswith("0x")), ""),
                tuple(map(Path, one.paths)),
                _tagged(one.tags, _HISTORY),
                int(_tagged(one.tags, _SEQUENCE) or 0),
            )
            for one in found
        ]
        return sorted(backups, key=lambda one: (one.sequence, one.unix_seconds))

    async def one(self, wanted: str, account: str = "") -> Stored:
        """By id, its beginning, or "latest".

        Args:
            wanted: which one.
            account: "latest" means this host's; empty: there must be one host only.

        Raises:
            NotFound: no such backup.
            InvalidRequest: the name fits several.
        """
        everything = await self.stored()
        if wanted == "latest":
            mine = [one for one in everything if not account or one.account == account]
            if not mine:
                raise NotFound(f"repository {self.repository} holds no backup of this host")
            if len({one.account for one in mine}) > 1:
                names = ", ".join(sorted({one.account for one in mine}))
                raise InvalidRequest(f"backups of {names} are there; choose one by its id")
            return mine[-1]
        fitting = [one for one in everything if one.id.startswith(wanted)]
        if not fitting:
            raise NotFound(f"repository {self.repository} holds no backup {wanted}")
        if len(fitting) > 1:
            raise InvalidRequest(f"{wanted} fits {len(fitting)} backups; write more of its id")
        return fitting[0]

    async def fetch(self, backup: Stored, into: Path, only: Path | None = None) -> None:
        """Restore below `into`, every file read again and compared; `only`: one of its paths."""
        included = ("--include", str(only)) if only is not None else ()
        await self._run(
            "restore", backup.id, "--target", str(into), "--verify", *included,
            seconds=TRANSFER_SECONDS,
        )  # fmt: skip

    async def check(self, *, read_data: bool = False) -> None:
        """Structure of the repository; with `read_data` every stored byte.

        Raises:
            Unavailable: damaged, or not reachable; restic's last words tell.
        """
        await self._run("check", *(("--read-data",) if read_data else ()), seconds=TRANSFER_SECONDS)

    async def forget(self, backups: Sequence[Stored]) -> None:
        """Take these out; their space stays used until `prune`."""
        if backups:
            ids = (one.id for one in backups)
            await self._run("forget", *ids, seconds=TRANSFER_SECONDS)

    async def prune(self) -> None:
        """Free what no backup uses."""
        await self._run("prune", seconds=TRANSFER_SECONDS)

    async def _run(self, *arguments: str, seconds: float = QUICK_SECONDS) -> bytes:
        try:
            return await self._once(*arguments, seconds=seconds)
        except Unavailable as error:
            if "already locked" not in error.message:
                raise
            # Removes locks whose holder is gone only: a crash left one.
            await self._once("unlock", seconds=QUICK_SECONDS)
            return await self._once(*arguments, seconds=seconds)

    async def _once(self, *arguments: str, seconds: float) -> bytes:
        program = found_program("restic", "restic")
        command = [program, "--cache-dir", str(self._cache), *self._options, *arguments]
        environment = {
            **self._environment,
            "RESTIC_REPOSITORY": self.repository,
            "RESTIC_PASSWORD_FILE": str(self._password_file),
        }
        return await run_program(command, deadline_seconds=seconds, environment=environment)


def _tagged(tags: Sequence[str], prefix: str) -> str:
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)), "")


def open_restic(settings: UpdaterSettings, cache: Path) -> Restic:
    """The repository of the settings; nothing is contacted yet.

    Raises:
        InvalidRequest: a setting or a file is missing.
    """
    if not settings.restic_repository:
        raise InvalidRequest(
            "updater.restic_repository is not set: name a directory, sftp:user@host:/path or"
            " s3:https://host/bucket"
        )
    if not settings.restic_password_file:
        raise InvalidRequest("updater.restic_password_file is not set: nothing is stored unsealed")
    password = credential_path(settings.restic_password_file)
    if not password.is_file():
        raise InvalidRequest(f"updater.restic_password_file {password} does not exist")
    environment = (
        environment_of(credential_path(settings.restic_environment_file))
        if settings.restic_environment_file
        else {}
    )
    options = ("-o", f"sftp.command={ssh_command(settings)}") if _has_own_ssh(settings) else ()
    return Restic(settings.restic_repository, password, environment, cache / "restic", options)


def _has_own_ssh(settings: UpdaterSettings) -> bool:
    is_sftp = settings.restic_repository.startswith("sftp:")
    if settings.restic_ssh_key_file and not (is_sftp and settings.restic_known_hosts_file):
        raise InvalidRequest(
            "updater.restic_ssh_key_file is for a repository sftp:user@host:/path, and needs"
            " updater.restic_known_hosts_file beside it"
        )
    return bool(settings.restic_ssh_key_file)


def ssh_command(settings: UpdaterSettings) -> str:
    """How restic reaches its server by the node's own key, asking nobody; of restic's two forms.

    Raises:
        InvalidRequest: the repository names no server, or a file does not exist.
    """
    place = settings.restic_repository.removeprefix("sftp:")
    url = urlsplit(place if place.startswith("//") else f"//{place.partition(':')[0]}")
    try:
        server, port = url.netloc.rpartition(":")[0] if url.port else url.netloc, url.port
    except ValueError as error:
        raise InvalidRequest(f"updater.restic_repository: {error}") from error
    # A word that begins with a dash would be ssh's option.
    if not url.hostname or server.startswith("-"):
        raise InvalidRequest("updater.restic_repository is not sftp:user@host:/path")
    files = [
        credential_path(name)
        for name in (settings.restic_ssh_key_file, settings.restic_known_hosts_file)
    ]
    for path in files:
        if not path.is_file():
            raise InvalidRequest(f"{path}, for updater.restic_repository, does not exist")
    key, known_hosts = files
    words = [
        *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
        *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"),
        *("-i", str(key), *(("-p", str(port)) if port else ()), server, "-s", "sftp"),
    ]
    return shlex.join(words)


def environment_of(path: Path) -> dict[str, str]:
    """NAME=VALUE lines, as systemd's EnvironmentFile= without quotes and escapes.

    Raises:
        InvalidRequest: missing, or a line is not of that form; the value is not told.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidRequest(f"environment file {path}: {error.strerror}") from error
    values: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidRequest(f"environment file {path}: line {number} is not NAME=VALUE")
        values[name] = value
    return values
