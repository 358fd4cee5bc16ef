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

from nodeapp.core.errors import Corrupt, NodeError, NotFound, Unavailable
from nodeapp.core.ids import Address, JobId, TxHash
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


class TransactionSigned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Written before the bytes leave; `key` names what the transaction is for."""

    key: str
    nonce: int
    tx_hash: TxHash
    raw: bytes


class TransactionMined(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The receipt says it was done."""

    key: str
    tx_hash: TxHash
    gas_used: int
    block_number: BlockNumber


class TransactionDropped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """It failed or can never be mined; the key is free again."""

    key: str
    reason: str


TransactionChange = TransactionSigned | TransactionMined | TransactionDropped
Entry = Change | CursorMoved | TransactionChange

SNAPSHOT_RECORDS = 20_000
"""At about 60000 records a second, what a restart replays at most takes a third of a second."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is snapshot; everything else of the ledger follows from it."""

    sessions: dict[JobId, Session]
    cursor: CursorMoved | None
    signed: dict[str, TransactionSigned]
    mined: dict[str, TransactionMined]


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
        self.signed: dict[str, TransactionSigned] = {}
        self.mined: dict[str, TransactionMined] = {}

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
            updated = self._apply_all(entries)
            await self._book.append(
                [journal.Change(type(entry).__name__, _encode(entry)) for entry in entries]
            )
            self._publish(entries, updated)
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

    def _apply_all(self, entries: tuple[Entry, ...]) -> Mapping[JobId, Session]:
        updated: dict[JobId, Session] = {}
        for entry in entries:
            match entry:
                case CursorMoved() | TransactionSigned() | TransactionMined():
                    continue
                case TransactionDropped():
                    continue
                case ContractReceiveSessionOpened(job_id=job_id):
                    if job_id not in self.sessions and job_id not in updated:
                        updated[job_id] = open_session(entry)
                case _:
                    known = updated.get(entry.job_id) or self.session(entry.job_id)
                    updated[entry.job_id] = apply(known, entry)
        return updated

    def _publish(self, entries: tuple[Entry, ...], updated: Mapping[JobId, Session]) -> None:
        self._show(updated)
        for entry in entries:
            match entry:
                case CursorMoved():
                    self.cursor = entry
                case TransactionSigned(key=key):
                    self.signed[key] = entry
                case TransactionMined(key=key):
                    self.mined[key] = entry
                    self.signed.pop(key, None)
                case TransactionDropped(key=key):
                    self.signed.pop(key, None)
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
        state = _State(self.sessions, self.cursor, self.signed, self.mined)
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
        self.signed.update(state.signed)
        self.mined.update(state.mined)
        return snapshot.sequence

    async def _replay(self) -> None:
        sequence = await self._restore()
        while records := await self._book.replay(sequence):
            for record in records:
                try:
                    entry = _decode(record.payload)
                    self._publish((entry,), self._apply_all((entry,)))
                except (msgspec.DecodeError, NodeError) as error:
                    raise Corrupt(
                        f"journal record {record.sequence} ({record.kind}) does not replay: {error}"
                    ) from error
            sequence = records[-1].sequence
