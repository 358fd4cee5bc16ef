"""Where files live: FHS for a system service, XDG for a person's run, --state-dir for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.config import CACHE_VARIABLE, environment_value
from nodeapp.service.settings import NodeSettings

MAX_SOCKET_PATH_BYTES = 107
"""sun_path holds 108 bytes with its end mark (unix(7))."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Absolute directories of one node."""

    state: Path
    run: Path
    cache: Path

    @property
    def log(self) -> Path:
        """Log files of the supervisor tree."""
        return self.state / "log"

    def socket(self, process: str) -> Path:
        """Unix socket of a process; the path is the process's name on this machine."""
        return self.run / f"{process}.sock"

    def process_state(self, process: str) -> Path:
        """Private directory of a process."""
        return self.state / process

    @property
    def journal(self) -> Path:
        """The ledger: opened by the chain process, put back by `backup restore`."""
        return self.journal_of("chain")

    def journal_of(self, process: str) -> Path:
        """The ledger of one chain's process."""
        return self.process_state(process) / "journal.db"


def resolve_paths(node: NodeSettings) -> Paths:
    """Fill what the settings leave empty.

    Raises:
        InvalidRequest: a socket path would not fit into sun_path.
    """
    state = Path(node.state_dir or _default_state()).absolute()
    run = Path(node.run_dir or state / "run").absolute()
    cache = Path(node.cache_dir or default_cache_dir()).absolute()
    longest = run / f"{max(('supervisor', *node.processes), key=len)}.sock"
    if len(str(longest).encode()) > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequest(
            f"runtime directory {run} is too long for a Unix socket; shorten node.run_dir"
        )
    return Paths(state, run, cache)


def default_cache_dir() -> Path:
    """Shared by checkouts: wheels, models, anvil, proof profiles."""
    named = environment_value(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = environment_value("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fabstir-node"


def _default_state() -> str:
    given = environment_value("STATE_DIRECTORY")
    if given:
        return given
    base = environment_value("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return str(Path(base) / "fabstir-node")
