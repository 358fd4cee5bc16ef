"""A stopped-or-running node's state on disk for the backup tests: a real ledger, real files."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.chain.ledger import Ledger
from nodeapp.core.session import RenterAuthenticated
from nodeapp.service.clock import SystemClock
from nodeapp.service.paths import Paths, resolve_paths
from nodeapp.service.settings import (
    ChainSettings,
    NodeSettings,
    Settings,
    StorageSettings,
    UpdaterSettings,
)
from nodeapp.service.supervisord import process_settings
from nodeapp.updater.backups import Backups
from nodeapp.updater.drill import Repository
from nodeapp.updater.restic import open_restic
from nodeapp.updater.snapshots import Snapshots
from nodeapp.updater.volumes import btrfs_snapshots
from nodeapp.wire.ipc_chain import BackupReply
from tests.fakes.paid_session import HOST, RENTER_KEY, opened

RECOVERY = "four words of recovery\n"
PASSWORD = "the keystore's password"


@dataclass
class ChainOwner:
    """What the chain process answers to the updater."""

    ledger: Ledger

    async def backup(self, directory: Path) -> BackupReply:
        made = await self.ledger.backup(directory)
        return BackupReply(path=str(made.path), sha256=made.sha256, records=made.records)


class BackedNode:
    """One node with its files, its repository and what the updater is made of."""

    def __init__(self, directory: Path, *, state: Path | None = None, **updater: object) -> None:
        self.directory = directory
        files = directory / "etc"
        files.mkdir(parents=True, exist_ok=True)
        given = {
            "restic_repository": str(directory / "repository"),
            "restic_password_file": self._file(files / "restic.password", "restic's password\n"),
            "recovery_password_file": self._file(files / "recovery.password", RECOVERY),
            "keep_last": 3,
            "keep_daily": 0,
            "keep_weekly": 0,
        }
        self.keystore = Path(self._file(files / "host.json", '{"crypto": "sealed key"}'))
        password = self._file(files / "host.password", PASSWORD)
        deployment = self._file(files / "deployment.json", '{"chain_id": 31337}')
        self.settings = Settings(
            node=NodeSettings(
                state_dir=str(state or directory / "state"), cache_dir=str(directory / "cache")
            ),
            chain=ChainSettings(
                keystore_file=str(self.keystore),
                password_file=password,
                deployment_file=deployment,
            ),
            s5=StorageSettings(),
            updater=msgspec.convert({**given, **updater}, UpdaterSettings),
        )

    @property
    def paths(self) -> Paths:
        return resolve_paths(self.settings.node)

    @property
    def repository(self) -> Repository:
        return Repository(self.settings, SystemClock())

    async def start(self) -> Ledger:
        """As the tree leaves it: settings, an identity, a blob, one open session."""
        await self.start_blank()
        self.put("s5/blobs/aa/aa01", b"transcript")
        self.put("models/model.gguf", b"x" * 100_000)
        if not self.ledger.sessions:
            await self.ledger.record(opened(), RenterAuthenticated(7, RENTER_KEY))
        return self.ledger

    async def start_blank(self) -> None:
        """As a first start leaves it."""
        paths = self.paths
        for directory in (paths.state / "conf", paths.process_state("updater"), paths.cache):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for process in ("chain", "s5"):
            text = process_settings(self.settings, process, paths)
            (paths.state / "conf" / f"{process}.toml").write_text(text, "utf-8")
        self.put("p2p/identity.key", b"identity-secret")
        await self.open()

    async def open(self) -> None:
        """The journal again, after a restart or a restore."""
        self.ledger = await self.open_ledger()

    async def open_ledger(self) -> Ledger:
        marker = self.keystore.with_name(f"{self.keystore.name}.journal")
        return await Ledger.open(self.paths.journal, owner=HOST, marker=marker)

    async def backups(self) -> Backups:
        source = Snapshots(ChainOwner(self.ledger), self.paths.state / "snapshots", keep=5)
        return Backups(
            settings=self.settings.updater,
            paths=self.paths,
            journals={"chain": source},
            restic=open_restic(self.settings.updater, self.paths.cache),
            clock=SystemClock(),
            volume=await btrfs_snapshots(self.paths.state, SystemClock()),
        )

    def put(self, name: str, content: bytes) -> Path:
        path = self.paths.state / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    @staticmethod
    def _file(path: Path, text: str) -> str:
        if not path.exists():
            path.write_text(text, "utf-8")
            path.chmod(0o600)
        return str(path)
