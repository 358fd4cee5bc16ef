"""What a renter outside pays for and gets, as rows of either stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nodeapp.evm.contracts import SessionJob
from tests.benchmarks.appliance_world import paid_request
from tests.benchmarks.report import Row, row
from tests.world import RenterHome, World


def answered(stage: str, when: str, tokens: int, wanted: int, note: str) -> Row:
    """Tokens of one answer."""
    return row(f"{stage}: tokens of a paid request {when}", tokens, "", f"== {wanted}", note)


def shares(stage: str, when: str, job: SessionJob, delivered: int) -> list[Row]:
    """A settled session: every token paid, every base unit of its deposit somewhere."""
    left = job.deposit - job.host_share - job.treasury_share - job.refund
    note = f"host {job.host_share}, treasury {job.treasury_share}, refund {job.refund}"
    return [
        row(f"{stage}: tokens settled {when}", job.tokens_used, "", f"== {delivered}"),
        row(f"{stage}: deposit not accounted for {when}", left, "base units", "== 0", note),
    ]


@dataclass(slots=True)
class KeptSession:
    """One session of one renter that stays open over everything that happens to the host."""

    stage: str
    world: World
    renter: RenterHome
    tokens_each: int
    """Of a question; at least the smallest claim (100), or the last ones are not paid."""
    seconds_each: float
    jobs: list[int] = field(default_factory=list)
    delivered: int = 0

    def ask(self, when: str) -> Row:
        """One more question in it."""
        began = time.monotonic()
        try:
            paid = paid_request(self.renter, self.tokens_each, self.seconds_each, "--keep")
        except AssertionError as error:
            # A row that misses its goal; what comes after it is to be shown all the same.
            return answered(self.stage, when, 0, self.tokens_each, str(error)[-300:])
        self.jobs.append(paid.job_id)
        self.delivered += paid.tokens
        note = f"session {paid.job_id}, renter and chain outside, {time.monotonic() - began:.0f} s"
        return answered(self.stage, when, paid.tokens, self.tokens_each, note)

    def close(self) -> list[Row]:
        """End it as its renter; what the contract and the renter's own verification say."""
        if not self.jobs:
            return [row(f"{self.stage}: sessions paid for all questions", 0, "", "== 1")]
        closed = self.renter.command("close")
        assert closed.finish(self.seconds_each) == 0, closed.err[-1500:]
        settled = self.world.until_settled(self.jobs[-1], self.seconds_each)
        verified = self.renter.command("verify")
        code = verified.finish(self.seconds_each)
        said = (verified.out or verified.err).strip().splitlines()[-1:]
        sessions = len(set(self.jobs))
        return [
            row(f"{self.stage}: sessions paid for all questions", sessions, "", "== 1"),
            *shares(self.stage, "at the end of the session", settled, self.delivered),
            row(f"{self.stage}: renter verifies it", int(code == 0), "", "== 1", "".join(said)),
        ]
