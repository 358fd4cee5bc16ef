"""The host's money: one line a session, each with its transactions, and sums that must agree.

Pure. A settled session's three shares come from the contract: gross = host + treasury = deposit -
refund. Before that, tokens are valued as the contract will value them. Amounts are base units of
the session's asset, gas is wei of the native coin, times are block times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from nodeapp.core.exposure import least_claim
from nodeapp.core.ids import Address, JobId, ModelId, TxHash
from nodeapp.core.outbox import TransactionDropped, TransactionMined
from nodeapp.core.pricing import cost
from nodeapp.core.session import Phase, Session
from nodeapp.core.steps import is_left_to_renter
from nodeapp.core.units import BaseUnits, BlockNumber, BlockTime, PricePerToken, Tokens, Wei

Grouping = Literal["session", "day", "model"]
UNKNOWN_DAY = "open"
"""The day of what is not settled yet."""


class TransactionLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One transaction; `cost` is what this host paid for it, 0 when another account sent it."""

    purpose: str
    tx_hash: TxHash
    block_number: BlockNumber
    block_time: BlockTime
    gas_used: int
    cost: Wei
    outcome: Literal["mined", "failed", "seen"] = "mined"
    """seen: a chain fact in a transaction that is not (known to be) ours."""


class Amounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sums in one asset, and gas."""

    sessions: int = 0
    tokens: Tokens = Tokens(0)
    """Paid for: accepted by the chain in settled sessions."""
    gross: BaseUnits = BaseUnits(0)
    treasury: BaseUnits = BaseUnits(0)
    net: BaseUnits = BaseUnits(0)
    withdrawn: BaseUnits = BaseUnits(0)
    claimed: BaseUnits = BaseUnits(0)
    """Pending: accepted by the chain, not settled; before the treasury's share."""
    unclaimed: BaseUnits = BaseUnits(0)
    """Pending: acknowledged by the renter, still to be claimed."""
    at_risk: BaseUnits = BaseUnits(0)
    """Sent, but nothing makes the renter pay for it yet, or nothing any more."""
    lost: BaseUnits = BaseUnits(0)
    """Sent in sessions that are over, and never paid."""
    gas: Wei = Wei(0)
    unproven_claims: int = 0
    """Accepted by the chain with the renter's receipt and no proof (`chain.proof`)."""

    def plus(self, other: Amounts) -> Amounts:
        """Field by field."""
        names = self.__struct_fields__
        return Amounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


class SessionLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One session."""

    job_id: JobId
    model_id: ModelId
    renter: Address
    asset: Address
    phase: str
    price_per_token: PricePerToken
    opened_at: BlockTime
    ended_at: BlockTime
    """0: not settled, or the time was not recorded."""
    amounts: Amounts
    note: str
    """Why something is at risk or lost, "" when nothing is."""
    transactions: tuple[TransactionLine, ...]

    @property
    def day(self) -> str:
        """UTC day of the settlement."""
        return day_of(self.ended_at) if self.ended_at else UNKNOWN_DAY


class StatementRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a grouped statement: a session, a day, or a model, in one asset."""

    group: str
    asset: Address
    amounts: Amounts
    transactions: tuple[TxHash, ...]


def day_of(time: BlockTime) -> str:
    """UTC day of a block time."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")


def session_line(
    session: Session,
    mined: Iterable[TransactionMined],
    failed: Iterable[TransactionDropped] = (),
) -> SessionLine:
    """A session's line.

    Args:
        session: as the ledger has it.
        mined: own transactions that served this session.
        failed: own transactions of this session that cost gas and served nothing.
    """
    terms, ended = session.terms, session.ended
    own = [_mined(one) for one in mined] + [_failed(one) for one in failed]
    transactions = _with_facts(session, own)
    gas = Wei(sum(line.cost for line in own))
    amounts = _settled(session, gas) if ended is not None else _open(session, gas)
    unproven = sum(claim.proofs == 0 for claim in session.mined_claims)
    amounts = msgspec.structs.replace(amounts, unproven_claims=unproven)
    return SessionLine(
        job_id=terms.job_id,
        model_id=terms.model_id,
        renter=terms.renter,
        asset=terms.asset,
        phase=session.phase.value,
        price_per_token=terms.price_per_token,
        opened_at=terms.started_at,
        ended_at=ended.at if ended is not None else BlockTime(0),
        amounts=amounts,
        note=_note(session),
        transactions=transactions,
    )


def _settled(session: Session, gas: Wei) -> Amounts:
    terms = session.terms
    gross = BaseUnits(terms.deposit - session.refund)
    withdrawn = session.withdrawn or BaseUnits(0)
    return Amounts(
        sessions=1,
        tokens=session.claimed,
        gross=gross,
        treasury=BaseUnits(gross - session.host_earnings),
        net=session.host_earnings,
        withdrawn=withdrawn,
        lost=_value(session, session.claimed, _sent(session)),
        gas=gas,
    )


def _open(session: Session, gas: Wei) -> Amounts:
    acknowledged = max(session.acknowledged, session.claimed)
    claimable = acknowledged if _is_claimable(session, acknowledged) else session.claimed
    if session.phase is Phase.VANISHED:
        return Amounts(sessions=1, at_risk=_value(session, Tokens(0), _sent(session)), gas=gas)
    if is_left_to_renter(session):
        return Amounts(sessions=1, lost=_value(session, Tokens(0), _sent(session)), gas=gas)
    return Amounts(
        sessions=1,
        claimed=_value(session, Tokens(0), session.claimed),
        unclaimed=_value(session, session.claimed, claimable),
        at_risk=_value(session, claimable, _sent(session)),
        gas=gas,
    )


def _is_claimable(session: Session, acknowledged: int) -> bool:
    least = least_claim(claimed=session.claimed, proof_interval=session.terms.proof_interval)
    return not session.is_claimed_elsewhere and acknowledged - session.claimed >= least


def _sent(session: Session) -> Tokens:
    return Tokens(max(session.produced, session.acknowledged, session.claimed) + session.forgotten)


def _value(session: Session, first: int, end: int) -> BaseUnits:
    """What tokens [first, end) are worth, rounded so that neighbours add up."""
    price = session.terms.price_per_token
    return BaseUnits(cost(Tokens(end), price) - cost(Tokens(first), price))


def _note(session: Session) -> str:
    sent, claimed = _sent(session), session.claimed
    if session.phase is Phase.VANISHED:
        return "a reorganisation took the session's creation away"
    if session.ended is not None:
        return f"{sent - claimed} tokens were sent and not paid" if sent > claimed else ""
    if is_left_to_renter(session):
        return f"{sent} tokens are too few for a first claim; the renter ends the session"
    reasons: list[str] = []
    unacknowledged = sent - max(session.acknowledged, claimed)
    if unacknowledged > 0:
        reasons.append(f"{unacknowledged} tokens are not acknowledged")
    short = session.acknowledged - claimed
    if short > 0 and session.is_claimed_elsewhere:
        reasons.append(f"{short} tokens may be in a claim this journal does not know")
    elif short > 0 and not _is_claimable(session, session.acknowledged):
        least = least_claim(claimed=claimed, proof_interval=session.terms.proof_interval)
        reasons.append(f"{short} tokens are below the smallest claim of {least}")
    return "; ".join(reasons)


def transaction_lines(
    mined: Iterable[TransactionMined], failed: Iterable[TransactionDropped]
) -> tuple[TransactionLine, ...]:
    """Own transactions in the order of their blocks."""
    lines = [_mined(one) for one in mined] + [_failed(one) for one in failed]
    return tuple(sorted(lines, key=lambda line: (line.block_number, line.purpose)))


def _mined(one: TransactionMined) -> TransactionLine:
    return TransactionLine(
        one.key, one.tx_hash, one.block_number, one.block_time, one.gas_used, one.cost
    )


def _failed(one: TransactionDropped) -> TransactionLine:
    return TransactionLine(
        one.key,
        one.tx_hash,
        one.block_number,
        one.block_time,
        one.gas_used,
        one.cost,
        outcome="failed",
    )


def _with_facts(session: Session, own: Sequence[TransactionLine]) -> tuple[TransactionLine, ...]:
    """Own transactions, and those of others that the session's chain facts stand in."""
    known = {line.tx_hash for line in own}
    facts: list[tuple[str, TxHash, BlockNumber, BlockTime]] = []
    if session.opened_in is not None:
        facts.append(("open", session.opened_tx, session.opened_in, session.terms.started_at))
    facts += [("claim", proof.tx_hash, proof.block, proof.at) for proof in session.proofs]
    if session.ended is not None:
        facts.append(("settle", session.ended.tx_hash, session.ended.block, session.ended.at))
    if session.withdrawn is not None:
        facts.append(("withdraw", session.withdrawn_tx, session.withdrawn_in, BlockTime(0)))
    seen = [
        TransactionLine(purpose, tx_hash, block, at, 0, Wei(0), outcome="seen")
        for purpose, tx_hash, block, at in facts
        if tx_hash and tx_hash not in known
    ]
    return tuple(sorted([*own, *seen], key=lambda line: (line.block_number, line.purpose)))


def total(lines: Iterable[SessionLine], asset: Address) -> Amounts:
    """The sum of an asset's lines."""
    amounts = Amounts()
    for line in lines:
        if line.asset == asset:
            amounts = amounts.plus(line.amounts)
    return amounts


def grouped(lines: Iterable[SessionLine], by: Grouping) -> tuple[StatementRow, ...]:
    """Lines put together; the rows' amounts add up to the lines'."""
    group_of: dict[Grouping, Callable[[SessionLine], str]] = {
        "session": lambda line: str(line.job_id),
        "day": lambda line: line.day,
        "model": lambda line: line.model_id,
    }
    sums: dict[tuple[str, Address], Amounts] = {}
    hashes: dict[tuple[str, Address], dict[TxHash, None]] = {}
    for line in lines:
        key = (group_of[by](line), line.asset)
        sums[key] = sums.get(key, Amounts()).plus(line.amounts)
        hashes.setdefault(key, {}).update((one.tx_hash, None) for one in line.transactions)
    order = sorted(sums, key=lambda key: (int(key[0]) if by == "session" else 0, key))
    return tuple(StatementRow(*key, sums[key], tuple(hashes[key])) for key in order)
