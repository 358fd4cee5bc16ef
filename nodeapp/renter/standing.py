"""What this renter has seen of hosts, and which of those on offer it takes first.

Kept in one small file of the renter's state; losing it costs nothing but the memory. A host that
failed lately counts as dearer, for less the longer ago it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from nodeapp.core.ids import Address, PeerId
from nodeapp.store.atomic import write_whole

MAX_ADDRESSES = 4
MAX_HOSTS = 1000
"""The ones met longest ago are forgotten first."""
HALF_LIFE_SECONDS = 600.0
"""A failure counts half as much after so long."""
FAILURE_WEIGHT = 4.0
MOST_FAILURES = 4
SMOOTHING = 0.3
"""Share of the newest answer in the averages."""
Preference = Literal["balanced", "cheapest", "fastest"]


class Standing(msgspec.Struct, frozen=True):
    """One host as this renter met it; times are Unix seconds, 0: never."""

    answers: int = 0
    failures_in_a_row: int = 0
    failed_at: float = 0.0
    met_at: float = 0.0
    tokens_per_second: float = 0.0
    first_token_seconds: float = 0.0
    peer_id: PeerId = PeerId("")
    addresses: tuple[str, ...] = ()

    def distrust(self, now: float) -> float:
        """1 for a host with a clean record, up to 17 right after the fourth failure."""
        age = max(0.0, now - self.failed_at)
        failures = min(self.failures_in_a_row, MOST_FAILURES)
        return 1.0 + FAILURE_WEIGHT * failures * math.pow(0.5, age / HALF_LIFE_SECONDS)


class Candidate(Protocol):
    """What ranking needs of a found host."""

    @property
    def wallet(self) -> Address:
        """Who sells."""

    @property
    def price_per_token(self) -> int:
        """Base units per 1000 tokens."""

    @property
    def answer_seconds(self) -> float:
        """How long it took to tell its offer."""


C = TypeVar("C", bound=Candidate)


class Standings:
    """The renter's memory of hosts, written after each answer."""

    def __init__(self, path: Path, known: dict[Address, Standing]) -> None:
        self._path = path
        self._known = known

    @classmethod
    def load(cls, directory: Path) -> Standings:
        """Read hosts.json; a missing or damaged file is an empty memory."""
        path = directory / "hosts.json"
        try:
            known = msgspec.json.decode(path.read_bytes(), type=dict[Address, Standing])
        except (OSError, msgspec.DecodeError):
            known = {}
        return cls(path, known)

    def of(self, wallet: Address) -> Standing:
        """What is known of one host."""
        return self._known.get(wallet, Standing())

    def peers(self) -> Iterator[tuple[PeerId, tuple[str, ...]]]:
        """Where hosts were met, newest first."""
        for standing in reversed(self._known.values()):
            if standing.peer_id and standing.addresses:
                yield standing.peer_id, standing.addresses

    def met(self, wallet: Address, peer_id: PeerId, address: str, now: float) -> None:
        """It told a good offer at this address."""
        old = self.of(wallet)
        others = [known for known in old.addresses if known != address]
        kept = (address, *others)[:MAX_ADDRESSES] if peer_id == old.peer_id else (address,)
        self._save(
            wallet, msgspec.structs.replace(old, met_at=now, peer_id=peer_id, addresses=kept)
        )

    def answered(
        self, wallet: Address, now: float, *, tokens_per_second: float, first_token_seconds: float
    ) -> None:
        """It gave a whole answer."""
        old = self.of(wallet)
        self._save(
            wallet,
            msgspec.structs.replace(
                old,
                answers=old.answers + 1,
                failures_in_a_row=0,
                met_at=now,
                tokens_per_second=_mixed(old.tokens_per_second, tokens_per_second),
                first_token_seconds=_mixed(old.first_token_seconds, first_token_seconds),
            ),
        )

    def failed(self, wallet: Address, now: float) -> None:
        """It was paid and did not finish an answer."""
        old = self.of(wallet)
        failures = old.failures_in_a_row + 1
        self._save(
            wallet,
            msgspec.structs.replace(old, failures_in_a_row=failures, failed_at=now, met_at=now),
        )

    def _save(self, wallet: Address, standing: Standing) -> None:
        self._known.pop(wallet, None)
        self._known[wallet] = standing
        while len(self._known) > MAX_HOSTS:
            del self._known[next(iter(self._known))]
        write_whole(self._path, msgspec.json.encode(self._known))


def ranked(found: Sequence[C], standings: Standings, prefer: Preference, now: float) -> list[C]:
    """Best first. A host never tried counts as fast as the fastest known, so that it is tried.

    cheapest: price, distrust and then speed decide. fastest: speed and distrust, then price.
    balanced: price times distrust, and half the ratio in speed.
    """
    speeds = [standings.of(host.wallet).tokens_per_second for host in found]
    fastest = max([speed for speed in speeds if speed > 0], default=1.0)

    def cost(host: C) -> tuple[float, float, float]:
        standing = standings.of(host.wallet)
        distrust = standing.distrust(now)
        slowness = fastest / standing.tokens_per_second if standing.tokens_per_second > 0 else 1.0
        price = host.price_per_token * distrust
        match prefer:
            case "cheapest":
                return (price, slowness, host.answer_seconds)
            case "fastest":
                return (slowness * distrust, host.answer_seconds, price)
            case "balanced":
                return (price * math.sqrt(slowness), host.answer_seconds, price)

    return sorted(found, key=cost)


def _mixed(old: float, new: float) -> float:
    return new if old == 0 else round((1 - SMOOTHING) * old + SMOOTHING * new, 4)
