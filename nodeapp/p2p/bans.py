"""Who is kept out: by peer id, wallet or subnet, for how long and why.

Bans outlive a restart, points do not. `admits` is asked from the trio thread: it only reads.
A peer that has paid is never kept out for what its neighbours do.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from nodeapp.core.audit import AuditSink, BanLifted, Banned, BannedByOperator, Unrecorded
from nodeapp.core.errors import InvalidRequest, NodeError, Unauthorised, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.core.peer_score import (
    BAN_POINTS,
    POINTS,
    SUBNET_SHARE,
    Ban,
    Score,
    next_ban,
    subnet_of,
)
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.store.atomic import write_whole

MAX_BANS = 10_000
MAX_SCORES = 10_000
KINDS = ("peer", "wallet", "subnet")
_log = get_logger(__name__)


class Bans:
    """The table; one file, rewritten whole when it changes."""

    def __init__(
        self, path: Path, clock: Clock, metrics: Metrics, audit: AuditSink | None = None
    ) -> None:
        self._path = path
        self._audit = audit or Unrecorded()
        self._clock = clock
        self._scores: dict[str, Score] = {}
        self._bans = self._load()
        self._gauge = metrics.gauge("banned", "Peers, wallets and subnets kept out")
        self._gauge.set(len(self.active()))

    def active(self) -> dict[str, Ban]:
        """Bans that hold now, by "kind:name"."""
        now = self._clock.unix_seconds()
        return {name: ban for name, ban in self._bans.items() if ban.is_active(now)}

    def admits(self, peer_id: PeerId, address: str, *, has_paid: bool = False) -> bool:
        """Whether a connection or stream of this peer is served."""
        now = self._clock.unix_seconds()
        names = [f"peer:{peer_id}"]
        if not has_paid and (subnet := subnet_of(address)):
            names.append(f"subnet:{subnet}")
        found = [self._bans.get(name) for name in names]
        return not any(ban is not None and ban.is_active(now) for ban in found)

    def check_wallet(self, wallet: str) -> None:
        """A renter that logged in.

        Raises:
            Unauthorised: its wallet is banned.
        """
        ban = self._bans.get(f"wallet:{wallet}")
        if ban is not None and ban.is_active(self._clock.unix_seconds()):
            raise Unauthorised(f"wallet {wallet} is not served here until {round(ban.until)}")

    def note(self, peer_id: PeerId, address: str, error: NodeError, *, has_paid: bool) -> None:
        """A peer was refused; enough refusals are a ban."""
        points = POINTS.get(error.code, 0.0)
        if not points:
            return
        self._add(f"peer:{peer_id}", points / (2 if has_paid else 1), error.message)
        subnet = subnet_of(address)
        if subnet and not has_paid:
            self._add(f"subnet:{subnet}", points * SUBNET_SHARE, error.message)

    def ban(self, name: str, reason: str, seconds: float) -> Ban:
        """The operator's own ban of "peer:…", "wallet:…" or "subnet:…".

        Raises:
            InvalidRequest: not such a name.
        """
        kind, separator, rest = name.partition(":")
        if not separator or kind not in KINDS or not rest:
            raise InvalidRequest(f"{name[:80]!r} is not one of {', '.join(KINDS)}, a colon, a name")
        ban = Ban(reason, self._clock.unix_seconds() + seconds)
        self._keep(name, ban)
        self._audit.record(BannedByOperator(name, reason, round(seconds)))
        return ban

    def lift(self, name: str) -> bool:
        """Let somebody in again; whether there was a ban."""
        found = self._bans.pop(name, None)
        self._scores.pop(name, None)
        self._save()
        if found is not None:
            self._audit.record(BanLifted(name))
        return found is not None

    def _add(self, name: str, points: float, reason: str) -> None:
        now = self._clock.unix_seconds()
        score = self._scores.pop(name, Score()).plus(points, now)
        if score.points < BAN_POINTS:
            self._scores[name] = score  # last in order: met newest
            if len(self._scores) > MAX_SCORES:
                del self._scores[next(iter(self._scores))]
            return
        ban = next_ban(self._bans.get(name), reason, now)
        _log.warning("banned", name=name, reason=reason, seconds=round(ban.until - now))
        self._audit.record(Banned(name, reason, round(ban.until - now)))
        self._keep(name, ban)

    def _keep(self, name: str, ban: Ban) -> None:
        now = self._clock.unix_seconds()
        kept = {n: b for n, b in self._bans.items() if n != name and not b.is_forgotten(now)}
        while len(kept) >= MAX_BANS:
            del kept[next(iter(kept))]
        # A new dictionary: the trio thread may be reading the old one.
        self._bans = {**kept, name: ban}
        self._save()

    def _load(self) -> dict[str, Ban]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Ban])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("bans forgotten", file=str(self._path), error=str(error))
            return {}

    def _save(self) -> None:
        self._gauge.set(len(self.active()))
        try:
            write_whole(self._path, msgspec.json.format(msgspec.json.encode(self._bans)))
        except Unavailable as error:
            _log.warning("bans are not kept", error=error.message)
