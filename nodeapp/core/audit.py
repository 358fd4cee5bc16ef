"""The audit log as plain values: what is recorded and how one record holds on to the one before.

A record is one line of JSON: {"seq", "at", "prev", "event"}; `prev` is the SHA-256 of the line
before it, without its newline, so that whoever alters, removes or moves a line breaks what follows.
Rules of this file: no prompt, answer, key, password or signature is a field of any event; texts are
cut at MAX_TEXT; what strangers can cause has a limit an hour. Only the envelope is needed to judge
a chain: after a rollback an older release reads kinds that it does not know.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, ClassVar, Protocol

import msgspec

from nodeapp.core.errors import Corrupt

MAX_TEXT = 300
MAX_LINE_BYTES = 32 << 10
STRANGERS_PER_HOUR = 120
_DOMAIN = b"fabstir-node audit log 1\n"
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a chain: its newest record's number and the SHA-256 of that line."""

    seq: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Digest


def _kind(name: str) -> str:
    return _WORDS.sub("_", name).lower()


class AuditEvent(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag=_kind
):
    """Base of every kind; the kind's name is the class's in small letters."""

    is_durable: ClassVar[bool] = True
    """On the disk before the log goes on; else with the next one that is."""
    per_hour: ClassVar[int] = 0
    """So many are written, more are counted; 0: all."""


class ProcessStarted(AuditEvent, frozen=True):
    """`settings` is the SHA-256 of what the process was told: it changes when they do."""

    version: str
    settings: str
    pid: int


class ProcessStopped(AuditEvent, frozen=True):
    """In order; `failure` is "" when it was told to. A kill leaves no such record."""

    failure: str


class TransactionSigned(AuditEvent, frozen=True):
    """What was signed, read from the transaction itself. `session` 0: about none.

    Wei as text: amounts do not fit into 64 bits.
    """

    function: str
    to: str
    session: int
    nonce: int
    value: str
    max_gas_cost: str
    chain_id: int
    tx_hash: str


class MessageSigned(AuditEvent, frozen=True):
    """An EIP-712 message of the marketplace; `digest` is what was signed."""

    purpose: str
    digest: str


class OfferSigned(AuditEvent, frozen=True):
    """A capability record: renewed every minute while the node gossips."""

    per_hour: ClassVar[int] = 12
    is_durable: ClassVar[bool] = False
    digest: str


class SignatureRefused(AuditEvent, frozen=True):
    """By the signing policy, which names the rule, or by the signer; nothing left the process."""

    what: str
    to: str
    rule: str
    reason: str


class WithdrawalDone(AuditEvent, frozen=True):
    """Base units of the asset; `payee` is who holds them now."""

    asset: str
    amount: str
    sessions: int
    payee: str


class WithdrawalFailed(AuditEvent, frozen=True):
    """It is tried again."""

    per_hour: ClassVar[int] = 12
    asset: str
    reason: str


class ListingChanged(AuditEvent, frozen=True):
    """One mined step of `fabstir-node host …`: registration, price, models, address, leaving."""

    step: str
    tx_hash: str


class OperatorAsked(AuditEvent, frozen=True):
    """A verb on a process's own socket: who asked (of the kernel), and "done" or an error code."""

    verb: str
    uid: int
    pid: int
    outcome: str
    reason: str


class SocketRefused(AuditEvent, frozen=True):
    """A user who may not use a process's socket."""

    per_hour: ClassVar[int] = STRANGERS_PER_HOUR
    is_durable: ClassVar[bool] = False
    path: str
    uid: int
    pid: int


class RenterAdmitted(AuditEvent, frozen=True):
    """A wallet proved itself on a peer's stream."""

    per_hour: ClassVar[int] = STRANGERS_PER_HOUR
    is_durable: ClassVar[bool] = False
    renter: str
    peer_id: str
    chain_id: int


class RenterRefused(AuditEvent, frozen=True):
    """A stream that ended before its wallet had proved itself."""

    per_hour: ClassVar[int] = STRANGERS_PER_HOUR
    is_durable: ClassVar[bool] = False
    peer_id: str
    address: str
    code: str
    reason: str


class Banned(AuditEvent, frozen=True):
    """`name` is "peer:…", "wallet:…" or "subnet:…"; by the node, for what a peer did."""

    per_hour: ClassVar[int] = STRANGERS_PER_HOUR
    is_durable: ClassVar[bool] = False
    name: str
    reason: str
    seconds: int


class BannedByOperator(AuditEvent, frozen=True):
    """The same by word of the operator."""

    name: str
    reason: str
    seconds: int


class BanLifted(AuditEvent, frozen=True):
    """By word of the operator."""

    name: str


class UpdateStep(AuditEvent, frozen=True):
    """An update went on to `phase`: verified, installing, blessed, rolled_back and the like."""

    phase: str
    version: str
    current: str
    is_held: bool
    reason: str


class ReleaseBlacklisted(AuditEvent, frozen=True):
    """It is not installed again."""

    version: str
    reason: str


class BackupAction(AuditEvent, frozen=True):
    """`action`: make, init, adopt, verify, restore or drill; `outcome`: "done" or an error code."""

    action: str
    id: str
    outcome: str
    detail: str


class Provisioned(AuditEvent, frozen=True):
    """A CONFIG medium was taken over or refused."""

    outcome: str
    generation: str
    wallet: str
    hostname: str


class SandboxFailed(AuditEvent, frozen=True):
    """What handles others' files could not be shut in, or crashed or hung in its sandbox."""

    what: str
    reason: str


class HeadsSeen(AuditEvent, frozen=True):
    """Ends of other processes' chains, on the disk by then: what is cut off later is missed."""

    heads: dict[str, Head]


class TailTorn(AuditEvent, frozen=True):
    """The file ended in the middle of a record: a power cut, or a hand. It was put into `kept`."""

    bytes: int
    kept: str


class TailMissing(AuditEvent, frozen=True):
    """While this process ran, records that it had written were taken away."""

    known: Head
    found: Head


class RecordsPruned(AuditEvent, frozen=True):
    """By the retention: all up to and including `through`."""

    through: Head


class RecordsSuppressed(AuditEvent, frozen=True):
    """So many more of one kind came than are written in an hour."""

    is_durable: ClassVar[bool] = False
    of: str
    count: int


class RecordsLost(AuditEvent, frozen=True):
    """So many could not be written; `reason` is the last failure."""

    count: int
    reason: str


class AuditSink(Protocol):
    """Where a process's parts tell what they did."""

    def record(self, event: AuditEvent) -> None:
        """From any thread; does not wait and does not fail."""
        ...

    async def keep(self, event: AuditEvent) -> None:
        """The same, and come back when it is on the disk, or known to be lost."""
        ...


class Unrecorded:
    """For parts that stand alone: tests, and commands that only look."""

    def record(self, event: AuditEvent) -> None:
        """Nothing."""

    async def keep(self, event: AuditEvent) -> None:
        """Nothing."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The envelope; `at` is UTC, told by a clock that may jump: `seq` gives the order."""

    seq: Annotated[int, msgspec.Meta(ge=1)]
    at: Annotated[str, msgspec.Meta(max_length=40)]
    prev: Digest
    event: msgspec.Raw


class _Kind(msgspec.Struct, frozen=True):
    kind: str


def kind_of(event: AuditEvent | type[AuditEvent]) -> str:
    """As it stands in the record."""
    return str(event.__struct_config__.tag)


def written_kind(record: Record) -> str:
    """Of a record that was read, known here or not.

    Raises:
        Corrupt: it has none.
    """
    try:
        return msgspec.json.decode(record.event, type=_Kind).kind
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"record {record.seq} has no event: {error}") from error


def genesis(process: str) -> Head:
    """Before the first record; another process's chain has another one."""
    return Head(0, hashlib.sha256(_DOMAIN + process.encode()).hexdigest())


def line_digest(line: bytes) -> str:
    """Of a line without its newline."""
    return hashlib.sha256(line).hexdigest()


def encode_record(head: Head, at: str, event: AuditEvent) -> tuple[bytes, Head]:
    """The next line with its newline, and the head after it."""
    body = msgspec.json.encode(_bounded(event))
    line = msgspec.json.encode(Record(head.seq + 1, at, head.sha256, msgspec.Raw(body)))
    return line + b"\n", Head(head.seq + 1, line_digest(line))


def decode_record(line: bytes) -> Record:
    """A line without its newline.

    Raises:
        Corrupt: it is no record.
    """
    if len(line) > MAX_LINE_BYTES:
        raise Corrupt(f"a line of {len(line)} bytes is no record")
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"a line is no record: {error}") from error


def head_of(line: bytes) -> Head:
    """The head that a line is.

    Raises:
        Corrupt: it is no record.
    """
    return Head(decode_record(line).seq, line_digest(line))


def _bounded(event: AuditEvent) -> AuditEvent:
    """Peers choose some texts: their length, and letters that no encoding has."""
    fitted = {
        name: value[:MAX_TEXT].encode("utf-8", "replace").decode()
        for name in event.__struct_fields__
        if isinstance(value := getattr(event, name), str)
    }
    return msgspec.structs.replace(event, **fitted) if fitted else event
