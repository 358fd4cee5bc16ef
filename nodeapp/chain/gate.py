"""What must hold on chain before a session gets tokens, and while it gets them.

Terms and deposit are checked by the session's own rules; here stands what needs the present: the
newest block, the marketplace's pause, our listing. Nothing here is stored and nothing is asked of
the chain, except the price, once for a session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from nodeapp.core.errors import Busy, NodeError, PaymentRequired
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.session import Session
from nodeapp.core.steps import is_running_out
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, PricePerToken, Tokens
from nodeapp.service.logs import get_logger

PAUSE_RETRY_SECONDS = 60.0
BLOCK_RETRY_SECONDS = 2.0
MAX_PRICED = 10_000
PriceAt = Callable[[Address, ModelId, Address, BlockNumber], Awaitable[PricePerToken]]
"""Host, model, asset, block: our listed price there; NotFound when it was not for sale."""
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """The chain as it is seen now."""

    head: BlockNumber
    """The newest block, confirmed or not."""
    time: BlockTime
    """Of the newest confirmed block."""
    is_paused: bool = False
    disagreement: str = ""
    """What the endpoints disagree on; new deposits wait then."""
    unapproved: tuple[ModelId, ...] = ()
    """Models of ours that the registry does not approve any more."""


def confirmations_for(deposit: BaseUnits, rules: Sequence[tuple[int, int]], *, least: int) -> int:
    """Blocks that must hold a session's creation: those of the largest amount it reaches.

    Args:
        deposit: base units of the session's asset.
        rules: (from so many base units on, confirmations).
        least: for every session.
    """
    return max([least, *(needed for amount, needed in rules if deposit >= amount)])


@dataclass(slots=True)
class Gate:
    """Ask before every request and with every batch of tokens."""

    host: Address
    assets: frozenset[Address]
    look: Callable[[], Sight]
    price_at: PriceAt
    find: Callable[[JobId], Awaitable[None]]
    """Look for a session whose creation we were not told of."""
    confirmations: int
    max_proof_interval: Tokens
    """Tokens that a renter may take before the first of them can be claimed."""
    confirmations_by_amount: Sequence[tuple[int, int]] = ()
    _priced: set[JobId] = field(default_factory=set)

    def check_terms(self, session: Session) -> None:
        """What never changes.

        Raises:
            PaymentRequired: this host does not serve such a session.
        """
        terms, job_id = session.terms, session.terms.job_id
        if terms.host != self.host:
            raise PaymentRequired(f"session {job_id} is with host {terms.host}")
        if terms.asset not in self.assets:
            raise PaymentRequired(f"session {job_id} is paid in {terms.asset}, not accepted here")
        if terms.proof_interval > self.max_proof_interval:
            raise PaymentRequired(
                f"session {job_id} has proof interval {terms.proof_interval}; this host takes at"
                f" most {self.max_proof_interval} tokens; open a new session"
            )

    async def check_price(self, session: Session) -> None:
        """The price is not below what we asked when the session was opened.

        Raises:
            PaymentRequired: it is; the contract should not have let it pass.
        """
        terms, opened_in = session.terms, session.opened_in
        if terms.job_id in self._priced or opened_in is None:
            return
        try:
            listed = await self.price_at(self.host, terms.model_id, terms.asset, opened_in)
        except NodeError as error:
            # The state of older blocks is not kept everywhere; the contract has checked it then.
            _log.info("price not read", job_id=terms.job_id, error=error.message)
            return
        if terms.price_per_token < listed:
            raise PaymentRequired(
                f"session {terms.job_id} pays {terms.price_per_token} per 1000 tokens,"
                f" {listed} was asked when it was opened"
            )
        if len(self._priced) >= MAX_PRICED:
            self._priced.clear()
        self._priced.add(terms.job_id)

    def check_new(self, session: Session) -> None:
        """Before a request is authorised.

        Raises:
            PaymentRequired: the session is at its end, or its model is not approved.
            Busy: not deep enough yet, or nothing can be claimed now.
        """
        sight, terms = self.look(), session.terms
        self.check_running(session)
        if is_running_out(session, sight.time):
            raise PaymentRequired(f"session {terms.job_id} is at its end; open a new session")
        if terms.model_id in sight.unapproved:
            raise PaymentRequired(f"model {terms.model_id} is not approved any more")
        if sight.disagreement and not session.produced:
            raise Busy(
                "the host's view of the chain is not certain; new sessions wait",
                retry_after_seconds=PAUSE_RETRY_SECONDS,
            )
        self._check_depth(session, sight)

    def check_running(self, session: Session) -> None:
        """With every batch: a paused marketplace takes no claim for it.

        Raises:
            Busy: the marketplace is paused.
        """
        if self.look().is_paused:
            raise Busy(
                f"the marketplace is paused, nothing of session {session.terms.job_id} can be"
                " claimed; it goes on afterwards",
                retry_after_seconds=PAUSE_RETRY_SECONDS,
            )

    def _check_depth(self, session: Session, sight: Sight) -> None:
        if session.opened_in is None:
            return  # vanished: the session itself refuses
        needed = confirmations_for(
            session.terms.deposit, self.confirmations_by_amount, least=self.confirmations
        )
        missing = session.opened_in + needed - 1 - sight.head
        if missing > 0:
            raise Busy(
                f"session {session.terms.job_id} has {needed - missing} of {needed} confirmations"
                f" for its deposit of {session.terms.deposit}; {missing} blocks are missing",
                retry_after_seconds=BLOCK_RETRY_SECONDS * missing,
            )
