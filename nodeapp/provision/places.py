"""Where provisioning reads and writes on a machine, and as whom."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodeapp.security import ownership

SERVICE_ACCOUNT = "fabstir"


@dataclass(frozen=True, slots=True)
class Places:
    """Of one machine; `under` another root for tests and for a mounted disk."""

    keys: Path = Path("/var/lib/fabstir-keys")
    """Survives updates: configurations taken over, identities of the machine."""
    state: Path = Path("/var/lib/fabstir")
    etc: Path = Path("/etc")
    run: Path = Path("/run")

    @classmethod
    def under(cls, root: Path) -> Places:
        """The same below another root."""
        here = cls()
        parts = (here.keys, here.state, here.etc, here.run)
        return cls(*(root / part.relative_to("/") for part in parts))

    @property
    def snapshots(self) -> Path:
        """A subvolume mounted inside the state, new and root's at the first boot."""
        return self.state / ".snapshots"

    @property
    def config(self) -> Path:
        """Generations, and the link `current` to the one that counts."""
        return self.keys / "config"

    @property
    def current(self) -> Path:
        """What the settings' paths begin with."""
        return self.config / "current"

    @property
    def link(self) -> Path:
        """Where /etc/fabstir/node.toml leads."""
        return self.run / "fabstir-config"

    @property
    def told(self) -> Path:
        """What everybody may read: the report, authorized_keys."""
        return self.run / "fabstir-provision"


@dataclass(frozen=True, slots=True)
class Account:
    """The node's own user."""

    uid: int
    gid: int


def service_account() -> Account | None:
    """None: this is not root, or the machine has no such user; then nothing changes its owner."""
    if os.geteuid() != 0:
        return None
    try:
        user, group = pwd.getpwnam(SERVICE_ACCOUNT), grp.getgrnam(SERVICE_ACCOUNT)
    except KeyError:
        return None
    return Account(user.pw_uid, group.gr_gid)


@contextlib.contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """Touch files as the node's user.

    Below a directory that this user may write, root follows no link that it may have put there.
    """
    if account is None:
        yield
        return
    with ownership.acting_as(account.uid, account.gid):
        yield
