"""A gate with a view of the chain that a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nodeapp.chain.gate import Gate, Sight
from nodeapp.core.errors import NotFound
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.units import BlockNumber, PricePerToken, Tokens
from tests.fakes.paid_session import HOST, STARTED_AT, terms


@dataclass
class View:
    """What the gate sees; `see` changes it."""

    sight: Sight = field(default_factory=lambda: Sight(BlockNumber(100), STARTED_AT))
    listed: int | None = 0
    """Our price when the session was opened; None: cannot be read."""
    asked: int = 0
    looked_for: list[JobId] = field(default_factory=list)

    def see(self, **values: object) -> None:
        self.sight = replace(self.sight, **values)  # type: ignore[arg-type]

    async def price_at(
        self, host: Address, model: ModelId, asset: Address, block: BlockNumber
    ) -> PricePerToken:
        self.asked += 1
        if self.listed is None:
            raise NotFound("no state of that block")
        return PricePerToken(self.listed)

    async def find(self, job_id: JobId) -> None:
        self.looked_for.append(job_id)

    def gate(self, *by_amount: tuple[int, int], confirmations: int = 1) -> Gate:
        return Gate(
            host=HOST,
            assets=frozenset((terms().asset,)),
            look=lambda: self.sight,
            price_at=self.price_at,
            find=self.find,
            confirmations=confirmations,
            max_proof_interval=Tokens(1000),
            confirmations_by_amount=by_amount,
        )
