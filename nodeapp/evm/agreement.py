"""Do the endpoints tell the same chain? Pure: what each said goes in, whom to trust comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodeapp.core.units import BlockNumber
from nodeapp.evm.rpc import Block

MAX_LAG_SECONDS = 60.0
"""An endpoint whose newest block is so much older than the others' does not count."""
FUTURE_SECONDS = 60.0
"""Clocks of block producers may be ahead by seconds; a newest block from farther on is a lie."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who tells the hash that most tell; `hash` is None when no majority does."""

    hash: str | None
    winners: tuple[str, ...]
    losers: tuple[str, ...]


def out_of_time(heads: Mapping[str, Block], *, unix_seconds: float) -> frozenset[str]:
    """Endpoints whose newest block is far from the others' in time.

    Args:
        heads: newest block by endpoint.
        unix_seconds: wall clock; a chain whose every endpoint is ahead of it (a development
            chain that was sent into the future) is taken as it is.
    """
    plausible = {
        name: block
        for name, block in heads.items()
        if block.timestamp <= unix_seconds + FUTURE_SECONDS
    } or heads
    best = max((block.timestamp for block in plausible.values()), default=0)
    stale = {name for name, block in plausible.items() if block.timestamp < best - MAX_LAG_SECONDS}
    return frozenset(stale | (heads.keys() - plausible.keys()))


def common_head(numbers: Sequence[int]) -> BlockNumber:
    """The highest block that a majority has; of two endpoints, what both have."""
    ordered = sorted(numbers, reverse=True)
    return BlockNumber(ordered[len(ordered) // 2])


def vote(hashes: Mapping[str, str]) -> Verdict:
    """Count who tells which hash of one block; more than half must tell the same."""
    by_hash: dict[str, list[str]] = {}
    for name, told in hashes.items():
        by_hash.setdefault(told, []).append(name)
    most = max(by_hash, key=lambda told: len(by_hash[told]), default=None)
    if most is None or 2 * len(by_hash[most]) <= len(hashes):
        return Verdict(None, (), tuple(hashes))
    losers = tuple(name for name, told in hashes.items() if told != most)
    return Verdict(most, tuple(by_hash[most]), losers)
