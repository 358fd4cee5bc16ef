"""The ledger: journal first, then memory. The only owner of session state.

decide() works under one lock: the entries are chosen from the state, the pure apply() checks
them, the journal makes them durable, then they become visible. A caller that is cancelled
meanwhile does not tear that apart. Replaying the journal gives the same state; a snapshot now and
then spares replaying what is long past. It holds nothing that the records do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from nodeapp.core import outbox as transactions
from nodeapp.core.errors import Corrupt, NodeError, NotFound, Unavailable
from nodeapp.core.ids import Address, JobId
from nodeapp.core.outbox import (
    Outbox,
    TransactionChange,
    TransactionDropped,
    TransactionMined,
    TransactionSigned,
)
from nodeapp.core.session import Change, ContractReceiveSessionOpened, Session
from nodeapp.core.transitions import apply, open_session
from nodeapp.core.units import BlockNumber
from nodeapp.service.logs import get_logger
from nodeapp.store import journal
from nodeapp.store.backups import BackupFile


class CursorMoved(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """All events up to this confirmed block are in the journal."""

    block_number: BlockNumber
    block_hash: str


Entry = Change | CursorMoved | TransactionChange

OUTBOX_BLOCKS = 1024
"""For so long an own transaction is kept ready to be sent again; above any reorg window."""
SNAPSHOT_RECORDS = 20_000
"""At about 60000 records a second, what a restart replays at most takes a third of a second."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is snapshot; everything else of the ledger follows from it."""

    sessions: dict[JobId, Session]
    cursor: CursorMoved | None
    outbox: Outbox
    mined: dict[str, TransactionMined]
    failed: tuple[TransactionDropped, ...]


_log = get_logger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(_State).decode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Ledger:
    """Open with `await Ledger.open(...)`."""

    def __init__(self, book: journal.Journal) -> None:
        self._book = book
        self._lock = asyncio.Lock()  # guards: choose, check, append and publish are one step
        self._changed = asyncio.Event()
        self._snapshot_at = 0
        self.sessions: dict[JobId, Session] = {}
        self.unsettled: dict[JobId, Session] = {}
        """What still needs work: a host has many more sessions behind it than open."""
        self.cursor: CursorMoved | None = None
        self.outbox = Outbox()
        self.mined: dict[str, TransactionMined] = {}
        """Purposes served, for good or still in the reorganisation window."""
        self.failed: list[TransactionDropped] = []
        """What cost gas and served nothing."""

    @classmethod
    async def open(cls, path: Path, *, owner: Address, marker: Path) -> Ledger:
        """Open the journal of this wallet and replay it.

        Raises:
            Corrupt: the wallet has a journal elsewhere (missing here), or it cannot be trusted.
            Unavailable: another process holds it.
        """
        book = await journal.Journal.open(path, owner=owner, must_exist=False, marker=marker)
        ledger = cls(book)
        try:
            await ledger._replay()
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
            updated, outbox = self._apply_all(entries)
            await self._book.append(
                [journal.Change(type(entry).__name__, _encode(entry)) for entry in entries]
            )
            self._publish(entries, updated, outbox)
            if self._book.last_sequence - self._snapshot_at >= SNAPSHOT_RECORDS:
                await self._save_snapshot()

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

    async def close(self) -> None:
        """Close the journal after what is being written."""
        async with self._lock:
            await self._book.close()

    def _apply_all(self, entries: tuple[Entry, ...]) -> tuple[Mapping[JobId, Session], Outbox]:
        updated: dict[JobId, Session] = {}
        outbox = self.outbox
        for entry in entries:
            match entry:
                case CursorMoved(block_number=number):
                    outbox = transactions.pruned(outbox, BlockNumber(number - OUTBOX_BLOCKS))
                case TransactionSigned() | TransactionMined() | TransactionDropped():
                    outbox = transactions.apply(outbox, entry)
                case ContractReceiveSessionOpened(job_id=job_id):
                    if job_id not in self.sessions and job_id not in updated:
                        updated[job_id] = open_session(entry)
                case _:
                    known = updated.get(entry.job_id) or self.session(entry.job_id)
                    updated[entry.job_id] = apply(known, entry)
        return updated, outbox

    def _publish(
        self, entries: tuple[Entry, ...], updated: Mapping[JobId, Session], outbox: Outbox
    ) -> None:
        self._show(updated)
        self.outbox = outbox
        for entry in entries:
            match entry:
                case CursorMoved():
                    self.cursor = entry
                case TransactionMined(key=key):
                    self.mined[key] = entry
                case TransactionDropped(cost=cost) if cost > 0:
                    self.failed.append(entry)
                case _:
                    pass
        self._changed.set()
        self._changed = asyncio.Event()

    def _show(self, updated: Mapping[JobId, Session]) -> None:
        self.sessions.update(updated)
        for job_id, session in updated.items():
            if session.is_settled:
                self.unsettled.pop(job_id, None)
            else:
                self.unsettled[job_id] = session

    async def _save_snapshot(self) -> None:
        """Under the lock: the state is that of the newest record."""
        sequence = self._book.last_sequence
        state = _State(self.sessions, self.cursor, self.outbox, self.mined, tuple(self.failed))
        try:
            await self._book.save_snapshot(_encode(state), sequence=sequence)
        except Unavailable as error:
            _log.warning("no snapshot", error=error.message)
        self._snapshot_at = sequence

    async def _restore(self) -> int:
        """Begin with the newest snapshot; returns the record it stands for, 0 without one."""
        snapshot = await self._book.latest_snapshot()
        if snapshot is None:
            return 0
        try:
            state = _decode_state(snapshot.state)
        except msgspec.DecodeError as error:
            _log.warning("snapshot of another version, all is replayed", error=str(error))
            return 0
        self._show(state.sessions)
        self.cursor, self._snapshot_at = state.cursor, snapshot.sequence
        self.outbox = state.outbox
        self.mined.update(state.mined)
        self.failed.extend(state.failed)
        return snapshot.sequence

    async def _replay(self) -> None:
        sequence = await self._restore()
        while records := await self._book.replay(sequence):
            for record in records:
                try:
                    entry = _decode(record.payload)
                    self._publish((entry,), *self._apply_all((entry,)))
                except (msgspec.DecodeError, NodeError) as error:
                    raise Corrupt(
                        f"journal record {record.sequence} ({record.kind}) does not replay: {error}"
                    ) from error
            sequence = records[-1].sequence
