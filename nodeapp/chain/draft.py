"""What the ledger would hold after some entries: pure rules put together, nothing durable.

The ledger makes one for every write, journals the entries, then takes its values over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from nodeapp.core import chain_view, outbox, reorgs, withdrawals
from nodeapp.core.chain_view import ChainView, CursorMoved, RewoundTo
from nodeapp.core.errors import NotFound
from nodeapp.core.ids import JobId
from nodeapp.core.outbox import (
    Outbox,
    TransactionChange,
    TransactionDropped,
    TransactionMined,
    TransactionSigned,
)
from nodeapp.core.session import Change, ContractReceiveSessionOpened, Session
from nodeapp.core.transitions import apply, is_same_creation, open_session
from nodeapp.core.units import BlockNumber
from nodeapp.core.withdrawals import WithdrawalFinished, WithdrawalPlanned, Withdrawals

Entry = Change | chain_view.ViewChange | TransactionChange | withdrawals.WithdrawalChange

OUTBOX_BLOCKS = 1024
"""For so long an own transaction is kept ready to be sent again; above any reorg window."""


@dataclass(slots=True)
class Draft:
    """`base` is what is published; the other fields are what differs from it, or replaces it."""

    base: Mapping[JobId, Session]
    outbox: Outbox
    view: ChainView
    withdrawals: Withdrawals = Withdrawals()  # noqa: RUF009 (immutable)
    sessions: dict[JobId, Session] = field(default_factory=dict)
    parked: tuple[Session, ...] = ()
    """Vanished sessions whose job id another session has now; a second reorg may turn it round."""

    def add(self, entries: Sequence[Entry]) -> Draft:
        """Apply them in order.

        Raises:
            Rejected: one does not fit; the draft is of no use then.
        """
        for entry in entries:
            match entry:
                case CursorMoved(block_number=number):
                    self.view = chain_view.apply(self.view, entry)
                    self.outbox = outbox.pruned(self.outbox, BlockNumber(number - OUTBOX_BLOCKS))
                case RewoundTo():
                    self._rewind(entry)
                case TransactionSigned() | TransactionMined() | TransactionDropped():
                    self.outbox = outbox.apply(self.outbox, entry)
                case WithdrawalPlanned() | WithdrawalFinished():
                    self.withdrawals = withdrawals.apply(self.withdrawals, entry)
                case ContractReceiveSessionOpened():
                    self._open(entry)
                case _:
                    self.sessions[entry.job_id] = apply(self._session(entry.job_id), entry)
        return self

    def _known(self, job_id: JobId) -> Session | None:
        return self.sessions.get(job_id) or self.base.get(job_id)

    def _session(self, job_id: JobId) -> Session:
        known = self._known(job_id)
        if known is None:
            raise NotFound(f"session {job_id} is not known to this host")
        return known

    def _open(self, change: ContractReceiveSessionOpened) -> None:
        job_id, known = change.job_id, self._known(change.job_id)
        if known is not None and not is_same_creation(known, change):
            self.parked = (*self.parked, reorgs.rewound(known, BlockNumber(change.block - 1)))
            # One more: the keys of a session without claims must not come again either.
            known = self._unpark(change, first_interval=known.intervals + 1)
        self.sessions[job_id] = open_session(change) if known is None else apply(known, change)

    def _unpark(self, change: ContractReceiveSessionOpened, *, first_interval: int) -> Session:
        """The parked session of this creation, or a new one; its claims get unused numbers."""
        for session in self.parked:
            if is_same_creation(session, change):
                self.parked = tuple(one for one in self.parked if one is not session)
                unused = session.first_interval + max(0, first_interval - session.intervals)
                return msgspec.structs.replace(session, first_interval=unused)
        return open_session(change, first_interval=first_interval)

    def _rewind(self, change: RewoundTo) -> None:
        block = change.block_number
        self.view = chain_view.apply(self.view, change)
        self.outbox = outbox.rewound(self.outbox, block)
        for job_id, session in {**self.base, **self.sessions}.items():
            if reorgs.newest_fact(session) > block:
                self.sessions[job_id] = reorgs.rewound(session, block)
