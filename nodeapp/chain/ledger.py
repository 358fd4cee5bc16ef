"""The ledger: journal first, then memory. The only owner of session state.

decide() works under one lock: the entries are chosen from the state, the pure rules check them,
the journal makes them durable, then they become visible. A caller that is cancelled meanwhile does
not tear that apart. Replaying the journal gives the same state. checkpoint() stores the state
beside the journal and removes the records it stands for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.chain import checkpoints
from nodeapp.chain.checkpoints import Archived, Common, Row
from nodeapp.chain.draft import Draft, Entry
from nodeapp.core import reorgs
from nodeapp.core.chain_view import ChainView, CursorMoved, RewoundTo
from nodeapp.core.errors import Corrupt, NodeError, NotFound, Unavailable
from nodeapp.core.ids import Address, JobId
from nodeapp.core.outbox import Outbox, TransactionDropped, TransactionMined, TransactionSigned
from nodeapp.core.session import Session
from nodeapp.core.steps import is_given_up
from nodeapp.core.units import BlockTime
from nodeapp.core.withdrawals import Withdrawals
from nodeapp.service.logs import get_logger
from nodeapp.store import journal
from nodeapp.store.backups import RESTORED_KEY, BackupFile

__all__ = [
    "CursorMoved",
    "Entry",
    "Ledger",
    "RewoundTo",
    "TransactionDropped",
    "TransactionMined",
    "TransactionSigned",
]
CHECKPOINT_RECORDS = 2_000
"""A restart replays about so many; a checkpoint of as many holds the journal up milliseconds."""
ROWS_AT_ONCE = 100
_log = get_logger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


@dataclass(frozen=True, slots=True)
class _Cut:
    """The state after the record `sequence`, as far as it is not stored yet."""

    sequence: int
    rows: dict[str, Row]
    sessions: frozenset[JobId]
    mined: frozenset[str]
    leaving: tuple[Archived, ...]
    leaving_parked: tuple[Archived, ...]


class Ledger:
    """Open with `await Ledger.open(...)`."""

    def __init__(self, book: journal.Journal) -> None:
        self._book = book
        self._lock = asyncio.Lock()  # guards: choose, check, append and publish are one step
        self._changed = asyncio.Event()
        self._checkpoint_at = 0
        self._unstored_sessions: set[JobId] = set()
        self._unstored_mined: set[str] = set()
        self.sessions: dict[JobId, Session] = {}
        """All that is not archived."""
        self.unsettled: dict[JobId, Session] = {}
        """What still needs work: a host has many more sessions behind it than open."""
        self.touched: set[JobId] = set()
        """Changed since whoever works on sessions emptied it."""
        self.is_restored = False
        """It came out of a backup; see restored.py."""
        self.held = ""
        """Why nobody is served and nothing new is signed: an operator must decide something."""
        self.rewinds = 0
        """Reorgs since the start: what was done before one may have to be done again."""
        self.time = BlockTime(0)
        """Of the newest confirmed block; told by who follows the chain, and not journalled."""
        self.parked: tuple[Session, ...] = ()
        """Vanished sessions whose job id another session has now."""
        self.view = ChainView()
        self.outbox = Outbox()
        self.withdrawals = Withdrawals()
        self.mined: dict[str, TransactionMined] = {}
        """Purposes served, without those of archived sessions."""
        self.failed: list[TransactionDropped] = []
        """What cost gas and served nothing."""

    @property
    def cursor(self) -> CursorMoved | None:
        """The newest block whose events are all in the journal."""
        return self.view.cursor

    @classmethod
    async def open(cls, path: Path, *, owner: Address, marker: Path, note: bool = True) -> Ledger:
        """Open the journal of this wallet and replay it.

        Args:
            path: the journal; made when the wallet has none.
            owner: the wallet.
            marker: see store/marker.py.
            note: False: leave the marker as it is, for who only reads.

        Raises:
            Corrupt: the wallet has a journal elsewhere (missing here), or it cannot be trusted.
            Unavailable: another process holds it.
        """
        book = await journal.Journal.open(
            path, owner=owner, must_exist=False, marker=marker, note=note
        )
        ledger = cls(book)
        try:
            await ledger._replay()
            ledger.is_restored = bool(await book.get_meta(RESTORED_KEY))
        except BaseException:
            await book.close()
            raise
        return ledger

    async def record(self, *entries: Entry) -> None:
        """Check, journal and apply, all or none.

        Raises:
            Rejected: an entry does not fit the state; nothing was written.
        """
        await self.decide(lambda: entries)

    async def decide(self, choose: Callable[[], Sequence[Entry]]) -> None:
        """Record what `choose` reads out of the state; nothing is written in between.

        Raises:
            Rejected: by `choose`, or an entry does not fit the state; nothing was written.
        """
        # A renter that hangs up cancels its handler; without the shield the journal would then
        # hold entries that memory does not know, and the repeated call would write them again.
        await asyncio.shield(self._decide(choose))

    async def _decide(self, choose: Callable[[], Sequence[Entry]]) -> None:
        async with self._lock:
            entries = tuple(choose())
            if not entries:
                return
            draft = self._draft().add(entries)
            await self._book.append(
                [journal.Change(type(entry).__name__, _encode(entry)) for entry in entries]
            )
            self._publish(entries, draft)

    def check(self, entries: Sequence[Entry]) -> None:
        """Whether they fit the state as it is; nothing is written.

        Raises:
            Rejected: one does not.
        """
        self._draft().add(entries)

    def session(self, job_id: JobId) -> Session:
        """One session.

        Raises:
            NotFound: the journal has none.
        """
        try:
            return self.sessions[job_id]
        except KeyError as error:
            raise NotFound(f"session {job_id} is not known to this host") from error

    async def wait_for_change(self) -> None:
        """Until something is recorded after this call."""
        await self._changed.wait()

    async def backup(self, directory: Path) -> BackupFile:
        """A checked copy of the journal."""
        return await self._book.backup(directory)

    async def forget_restored(self) -> None:
        """What the journal lost by its restoration is known from the chain now."""
        await self._book.put_meta(RESTORED_KEY, b"")
        self.is_restored = False

    async def close(self) -> None:
        """Close the journal after what is being written."""
        async with self._lock:
            await self._book.close()

    async def archived(self, job_id: JobId) -> tuple[Archived, ...]:
        """What is archived of a job id: one session, or more when reorgs gave it to several."""
        rows = await self._book.archived(job_id)
        return tuple(checkpoints.decode_archived(row) for row in rows)

    async def archive_after(self, place: int, limit: int = 500) -> list[tuple[int, Archived]]:
        """The next archived sessions with their places, oldest first; begin with place 0."""
        rows = await self._book.archive_after(place, limit)
        return [(number, checkpoints.decode_archived(row)) for number, row in rows]

    async def keep_short(self) -> None:
        """Make a checkpoint whenever enough was recorded; never returns."""
        while True:
            if self._book.last_sequence - self._checkpoint_at >= CHECKPOINT_RECORDS:
                try:
                    await self.checkpoint()
                except Unavailable as error:
                    _log.warning("no checkpoint", error=error.message)
            await self.wait_for_change()

    async def checkpoint(self) -> None:
        """Store the state, archive what is over for good, remove the records before.

        Raises:
            Unavailable: the disk is full; nothing was changed.
        """
        async with self._lock:
            cut = self._cut()
        # The values are immutable: the ledger goes on while they are encoded and written.
        try:
            await self._store(cut)
        except Unavailable:
            self._unstored_sessions |= cut.sessions
            self._unstored_mined |= cut.mined
            self._show({one.session.terms.job_id: one.session for one in cut.leaving})
            self.mined |= {mined.key: mined for one in cut.leaving for mined in one.transactions}
            self.parked = (*(one.session for one in cut.leaving_parked), *self.parked)
            raise
        self._checkpoint_at = cut.sequence

    def _draft(self) -> Draft:
        return Draft(self.sessions, self.outbox, self.view, self.withdrawals, parked=self.parked)

    def _publish(self, entries: Sequence[Entry], draft: Draft) -> None:
        self._show(draft.sessions)
        self.outbox, self.view, self.parked = draft.outbox, draft.view, draft.parked
        self.withdrawals = draft.withdrawals
        for entry in entries:
            match entry:
                case TransactionMined(key=key):
                    self.mined[key] = entry
                    self._unstored_mined.add(key)
                case TransactionDropped(cost=cost) if cost > 0:
                    self.failed.append(entry)
                case RewoundTo(block_number=block):
                    self._unmine(block)
                case _:
                    pass
        self._changed.set()
        self._changed = asyncio.Event()

    def _unmine(self, block: int) -> None:
        self.rewinds += 1
        gone = [key for key, mined in self.mined.items() if mined.block_number > block]
        for key in gone:
            del self.mined[key]
        self._unstored_mined.update(gone)
        self.failed = [one for one in self.failed if one.block_number <= block]

    def _show(self, updated: Mapping[JobId, Session]) -> None:
        self.sessions.update(updated)
        self.touched.update(updated)
        self._unstored_sessions.update(updated)
        for job_id, session in updated.items():
            if session.is_settled:
                self.unsettled.pop(job_id, None)
            else:
                self.unsettled[job_id] = session

    def _cut(self) -> _Cut:
        """Under the lock. What is over leaves at once: no later record may name it."""
        over = [session for session in self.sessions.values() if self._is_over(session)]
        leaving = tuple(self._take_out(over))
        parked = tuple(one for one in self.parked if self._is_over(one))
        self.parked = tuple(one for one in self.parked if one not in parked)
        sessions, self._unstored_sessions = frozenset(self._unstored_sessions), set()
        mined, self._unstored_mined = frozenset(self._unstored_mined), set()
        common = Common(self.view, self.outbox, tuple(self.failed), self.parked, self.withdrawals)
        rows: dict[str, Row] = {
            checkpoints.COMMON_KEY: common,
            **{checkpoints.session_key(one): self.sessions.get(one) for one in sessions},
            **{checkpoints.mined_key(key): self.mined.get(key) for key in mined},
        }
        return _Cut(
            self._book.last_sequence,
            rows,
            sessions,
            mined,
            leaving,
            tuple(Archived(one) for one in parked),
        )

    def _take_out(self, over: Sequence[Session]) -> Iterator[Archived]:
        served: dict[int | None, list[TransactionMined]] = {}
        for key, mined in self.mined.items():
            served.setdefault(checkpoints.job_of(key), []).append(mined)
        for session in over:
            job_id = session.terms.job_id
            transactions = served.get(job_id, [])
            for mined in transactions:
                del self.mined[mined.key]
                self._unstored_mined.add(mined.key)
            del self.sessions[job_id]
            self.unsettled.pop(job_id, None)
            self.touched.discard(job_id)
            self._unstored_sessions.add(job_id)
            yield Archived(session, tuple(transactions))

    def _is_over(self, session: Session) -> bool:
        is_given_up_for_good = (
            is_given_up(session, self.time) and reorgs.newest_fact(session) <= self.view.final
        )
        if not (is_given_up_for_good or reorgs.is_final(session, self.view.final)):
            return False
        if session.is_settled:
            return True
        # Its bytes may still be mined; then somebody has to know what they were for.
        pending = (checkpoints.job_of(key) for key in self.outbox.pending)
        return session.terms.job_id not in pending

    async def _store(self, cut: _Cut) -> None:
        puts: dict[str, bytes] = {}
        removed: list[str] = []
        for number, (key, value) in enumerate(cut.rows.items()):
            if value is None:
                removed.append(key)
            else:
                puts[key] = checkpoints.encode(value)
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        archive = [
            (one.session.terms.job_id, checkpoints.encode_archived(one))
            for one in (*cut.leaving, *cut.leaving_parked)
        ]
        await self._book.checkpoint(cut.sequence, puts, removed, archive)

    async def _restore(self) -> int:
        """Begin with the stored state; returns the record it stands for, 0 without one."""
        sequence, rows = await self._book.stored_state()
        restored = checkpoints.decode_rows(rows)
        self._show(restored.sessions)
        self.view, self.outbox = restored.common.view, restored.common.outbox
        self.parked = restored.common.parked
        self.withdrawals = restored.common.withdrawals
        self.failed.extend(restored.common.failed)
        self.mined.update(restored.mined)
        self._unstored_sessions.clear()
        self._checkpoint_at = sequence
        return sequence

    async def _replay(self) -> None:
        sequence = await self._restore()
        while records := await self._book.replay(sequence):
            for record in records:
                try:
                    entry = _decode(record.payload)
                    self._publish((entry,), self._draft().add((entry,)))
                except (msgspec.DecodeError, NodeError) as error:
                    raise Corrupt(
                        f"journal record {record.sequence} ({record.kind}) does not replay: {error}"
                    ) from error
            sequence = records[-1].sequence
