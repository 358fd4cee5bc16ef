"""What everybody is owed by the marketplace's rules: a model beside the real contracts, without any chain.

The `takes…` methods say whether the contracts must accept; the verbs book what was accepted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from nodeapp.core.pricing import settle
from tests.contracts.world import DAY_SECONDS, FAB, NATIVE_PRICE, RULES, STABLE_PRICE

RATE = 2000
DEPOSITS = {"usdc": (500_000, 10**12), "native": (10**14, 1000 * 10**18)}
PRICES = {"usdc": STABLE_PRICE, "native": NATIVE_PRICE}


@dataclass
class Job:
    """What the model knows of a session."""

    job_id: int
    renter: str
    host: str
    asset: str
    deposit: int
    price: int
    interval: int
    window: int
    duration: int
    started: int
    proved: int
    used: int = 0

    @property
    def covered(self) -> int:
        """Tokens that the deposit pays."""
        return self.deposit * 1000 // self.price


@dataclass
class Books:
    """Accounts by party and asset; block times in seconds."""

    open: dict[int, Job] = field(default_factory=dict)
    balances: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    earnings: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    treasury: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stakes: dict[str, int] = field(default_factory=dict)
    slashed_at: dict[str, int] = field(default_factory=dict)
    slashed: int = 0
    limits: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Most per session, cap, spent."""
    min_tokens_fee: int = RULES.min_tokens_fee
    paused: bool = False
    hashes: int = 0

    def takes(self, job: Job) -> bool:
        """Whether a session with these terms can be opened by somebody who can pay it."""
        least, most = DEPOSITS[job.asset]
        return (
            not self.paused
            and job.host in self.stakes
            and least <= job.deposit <= most
            and job.price >= PRICES[job.asset]
            and job.covered >= job.interval
        )

    def begin(self, job: Job, at: int) -> None:
        """Open a session in the block of this time."""
        job.started = job.proved = at
        self.open[job.job_id] = job

    def takes_delegate(self, owner: str, delegate: str, deposit: int) -> bool:
        """Whether the delegate's limits leave so much."""
        limits = self.limits.get((owner, delegate))
        return limits is not None and (
            (limits[0] == 0 or deposit <= limits[0])
            and (limits[1] == 0 or limits[2] + deposit <= limits[1])
        )

    def takes_claim(self, job: Job, tokens: int, at: int) -> bool:
        """Whether the host may claim so many more tokens."""
        return (
            not self.paused
            and job.host in self.stakes
            and tokens >= (100 if job.used else max(100, job.interval))
            and tokens <= (at - job.proved) * RATE
            and job.used + tokens <= job.covered
        )

    def claim(self, job: Job, tokens: int, at: int) -> None:
        """With a new proof hash."""
        job.used += tokens
        job.proved = at
        self.hashes += 1

    def settle(self, job: Job, *, cancelled: bool) -> tuple[int, int]:
        """End a session; the host's share and the renter's refund."""
        del self.open[job.job_id]
        split = settle(job.deposit, job.used, job.price, fee_basis_points=RULES.fee_basis_points)
        host, refund = split.host, split.refund
        if cancelled and job.used == 0:
            host = min(self.min_tokens_fee * job.price // 1000, job.deposit)
            refund = job.deposit - host
        self.treasury[job.asset] += split.treasury
        self.earnings[job.host, job.asset] += host
        assert host + split.treasury + refund == job.deposit
        return host, refund

    def takes_slash(self, host: str, amount: int, at: int) -> bool:
        """Whether the owner may take so much of a stake now."""
        rested = at >= self.slashed_at.get(host, -DAY_SECONDS) + DAY_SECONDS
        return 0 < amount <= self.stakes.get(host, 0) // 2 and rested

    def slash(self, host: str, amount: int, at: int) -> None:
        """A host whose stake gets too small is one no more."""
        self.slashed += amount
        self.slashed_at[host] = at
        self.stakes[host] -= amount
        if self.stakes[host] < 100 * FAB:
            del self.stakes[host]

    def owed(self, asset: str) -> int:
        """What the marketplace must hold: open deposits, renters' balances, the treasury's fees."""
        deposits = sum(job.deposit for job in self.open.values() if job.asset == asset)
        balances = sum(left for (_, kind), left in self.balances.items() if kind == asset)
        return deposits + balances + self.treasury[asset]

    def credit(self, asset: str) -> int:
        """What HostEarnings must hold."""
        return sum(left for (_, kind), left in self.earnings.items() if kind == asset)
