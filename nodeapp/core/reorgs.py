"""What a reorganised chain takes back, and what can no longer be taken back.

Pure. Chain facts carry the block that said them, so taking back is leaving out; nothing that
happened here is touched (decision 0006).
"""

from __future__ import annotations

import msgspec

from nodeapp.core.session import Phase, Session
from nodeapp.core.units import BlockNumber


def rewound(session: Session, block: BlockNumber) -> Session:
    """The session without what the chain said above the block."""
    is_lost_now = session.opened_in is not None and session.opened_in > block
    return msgspec.structs.replace(
        session,
        opened_in=None if is_lost_now else session.opened_in,
        vanished_from=session.opened_in if is_lost_now else session.vanished_from,
        proofs=tuple(proof for proof in session.proofs if proof.block <= block),
        ended=session.ended if session.ended and session.ended.block <= block else None,
        withdrawn=session.withdrawn if session.withdrawn_in <= block else None,
        withdrawn_in=session.withdrawn_in if session.withdrawn_in <= block else BlockNumber(0),
    )


def newest_fact(session: Session) -> BlockNumber:
    """The highest block that said something of the session."""
    return max(
        session.opened_in or BlockNumber(0),
        max((proof.block for proof in session.proofs), default=BlockNumber(0)),
        session.ended.block if session.ended else BlockNumber(0),
        session.withdrawn_in if session.withdrawn is not None else BlockNumber(0),
    )


def is_meant_for(key: str, session: Session) -> bool:
    """Whether what was signed under this key acts on this very session.

    The contract takes it for whatever session has the number: after a reorganisation that may be
    another renter's.
    """
    verb, _, rest = key.partition("~")[0].partition("/")
    number = rest.partition("/")[2]
    if verb == "claim":
        return number in {str(claim.interval) for claim in session.claims}
    if verb in ("complete", "timeout"):
        return number == (str(session.first_interval) if session.first_interval else "")
    return True


def is_final(session: Session, block: BlockNumber) -> bool:
    """Whether nothing more can come of the session once `block` cannot be taken back."""
    if session.phase is Phase.VANISHED:
        return session.vanished_from <= block
    return session.is_settled and newest_fact(session) <= block


def without_work(session: Session) -> Session:
    """A session that is over for good, without what only further work would need."""
    taken = session.mined_claims
    return msgspec.structs.replace(
        session, request=None, stream=(), first_kept=session.produced, prompts=(), claims=taken
    )
