"""What a ledger holds, to compare it with another one."""

from nodeapp.chain.ledger import Ledger
from nodeapp.core.ids import JobId
from nodeapp.core.session import Session


def identity(session: Session) -> tuple[str, int]:
    """Who opened it and its job id: a reorganisation may give the id to another renter."""
    return session.terms.renter, session.terms.job_id


def all_of(ledger: Ledger) -> tuple[object, ...]:
    """Everything it knows now, as copies: a reopened ledger must say the same."""
    return (
        dict(ledger.sessions),
        dict(ledger.unsettled),
        ledger.view,
        ledger.outbox,
        dict(ledger.mined),
        list(ledger.failed),
        ledger.parked,
    )


async def chain_facts(ledger: Ledger) -> dict[JobId, tuple[object, ...]]:
    """Everything that comes from the chain, in a form that does not depend on who was there."""
    sessions = list(ledger.sessions.values())
    sessions += [archived.session for _, archived in await ledger.archive_after(0, 10_000)]
    return {
        one.terms.job_id: (
            one.terms,
            one.opened_in,
            one.opened_tx,
            frozenset(one.proofs),
            one.ended,
        )
        for one in sessions
        if one.opened_in is not None
    }
