"""The ledger's state as rows beside its journal: a restart reads them and replays what is newer.

A checkpoint writes what changed since the last one, moves what is over for good to the archive
and removes the records it stands for, all in one transaction. The rows are then the only truth, so
stored structs gain fields with defaults only.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nodeapp.core import reorgs
from nodeapp.core.chain_view import ChainView
from nodeapp.core.errors import Corrupt
from nodeapp.core.ids import JobId
from nodeapp.core.outbox import Outbox, TransactionDropped, TransactionMined
from nodeapp.core.session import Session
from nodeapp.core.withdrawals import Withdrawals

COMMON_KEY = "common"
_SESSION, _MINED = "session/", "mined/"


class Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not of one session. It is stored: a new field needs a default."""

    view: ChainView = ChainView()
    outbox: Outbox = Outbox()
    failed: tuple[TransactionDropped, ...] = ()
    parked: tuple[Session, ...] = ()
    withdrawals: Withdrawals = Withdrawals()


class Archived(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session that is over for good, and its transactions. A new field needs a default."""

    session: Session
    transactions: tuple[TransactionMined, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_common = msgspec.msgpack.Decoder(Common).decode
_session = msgspec.msgpack.Decoder(Session).decode
_mined = msgspec.msgpack.Decoder(TransactionMined).decode
_archived = msgspec.msgpack.Decoder(Archived).decode


Row = Session | TransactionMined | Common | None
"""None: there is no such row any more."""


class Restored(msgspec.Struct):
    """What the rows say."""

    common: Common = Common()
    sessions: dict[JobId, Session] = {}
    mined: dict[str, TransactionMined] = {}


def session_key(job_id: JobId) -> str:
    """Row of a session."""
    return f"{_SESSION}{job_id}"


def mined_key(key: str) -> str:
    """Row of a mined transaction."""
    return f"{_MINED}{key}"


def encode(value: Common | Session | TransactionMined) -> bytes:
    """Content of a row."""
    return _encode(value)


def encode_archived(archived: Archived) -> bytes:
    """What the archive keeps: without prompts, ids and claims that nobody took."""
    return _encode(msgspec.structs.replace(archived, session=reorgs.without_work(archived.session)))


def decode_archived(payload: bytes) -> Archived:
    """A row of the archive.

    Raises:
        Corrupt: it was not written by this program or an older one.
    """
    try:
        return _archived(payload)
    except msgspec.DecodeError as error:
        raise Corrupt(f"an archived session cannot be read: {error}") from error


def decode_rows(rows: Mapping[str, bytes]) -> Restored:
    """The state that the rows hold.

    Raises:
        Corrupt: a row was not written by this program or an older one.
    """
    restored = Restored()
    for key, payload in rows.items():
        try:
            if key.startswith(_SESSION):
                session = _session(payload)
                restored.sessions[session.terms.job_id] = session
            elif key.startswith(_MINED):
                mined = _mined(payload)
                restored.mined[mined.key] = mined
            else:
                restored.common = _common(payload)
        except msgspec.DecodeError as error:
            raise Corrupt(
                f"journal row {key} cannot be read: {error}; was it written by a newer version?"
            ) from error
    return restored


def job_of(key: str) -> int | None:
    """The session a transaction's key names: `<verb>/<job id>` or `<verb>/<job id>/…`."""
    verb, _, rest = key.partition("/")
    number = rest.partition("/")[0]
    return int(number) if verb in _JOB_VERBS and number.isdecimal() else None


_JOB_VERBS = ("claim", "complete", "timeout", "withdraw", "payout")
