"""Judging chains of audit records: the first place that was altered, removed, moved or cut off.

A chain alone cannot tell that its end is missing: heads that others saw are compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from nodeapp.core.audit import (
    AuditEvent,
    Head,
    HeadsSeen,
    Record,
    RecordsPruned,
    decode_record,
    genesis,
    kind_of,
    line_digest,
    written_kind,
)
from nodeapp.core.errors import Corrupt, InvalidRequest

E = TypeVar("E", bound=AuditEvent)
_SEEN, _PRUNED = kind_of(HeadsSeen), kind_of(RecordsPruned)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong: `place` is file and line, or who saw a head."""

    process: str
    place: str
    reason: str

    def text(self) -> str:
        """One line for people."""
        return f"{self.process}: {self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """Somebody saw that a process's chain ended with `head`."""

    process: str
    head: Head
    by: str


class _KeptHeads(msgspec.Struct, frozen=True):
    """Of `audit heads`, or what a backup's manifest says."""

    heads: dict[str, Head] = {}
    audit: dict[str, Head] = {}


@dataclass(slots=True)
class Chain:
    """A process's records from the oldest that is kept, as far as they hold together."""

    process: str
    head: Head
    first: int = 0
    """Number of the oldest record; 0: there is none."""
    digests: dict[int, str] = field(default_factory=dict)
    seen: list[Sighting] = field(default_factory=list)
    unfinished_bytes: int = 0
    """After the last newline: being written now, or torn and not looked at by the process yet."""
    fault: Fault | None = None

    @property
    def records(self) -> int:
        """How many are kept."""
        return len(self.digests)


def kept_heads(text: bytes, by: str) -> list[Sighting]:
    """Heads that were kept somewhere else.

    Raises:
        InvalidRequest: there are none in it.
    """
    try:
        kept = msgspec.json.decode(text, type=_KeptHeads)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{by} holds no heads: {error}") from error
    found = {**kept.audit, **kept.heads}
    if not found:
        raise InvalidRequest(f"{by} holds no heads; `audit heads` prints them")
    return [Sighting(process, head, by) for process, head in found.items()]


def read_chain(process: str, files: Sequence[tuple[str, bytes]]) -> Chain:
    """Follow a chain through its files, oldest first; ends at the first fault.

    Args:
        process: whose it is; goes into the first record's `prev`.
        files: (name, content) of each.
    """
    chain = Chain(process, genesis(process))
    pruned: Head | None = None
    before = Head(0, "")
    for place, (name, content) in enumerate(files):
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                record = decode_record(line)
                if not chain.first:
                    chain.first = record.seq
                    if record.seq > 1:
                        chain.head = before = Head(record.seq - 1, record.prev)
                _check_link(chain.head, record)
                chain.head = Head(record.seq, line_digest(line))
                chain.digests[record.seq] = chain.head.sha256
                pruned = _take_in(chain, record) or pruned
            except Corrupt as error:
                chain.fault = Fault(process, f"{name} line {number}", error.message)
                return chain
        if rest and place < len(files) - 1:
            chain.fault = Fault(process, name, "it ends in the middle of a record")
            return chain
        chain.unfinished_bytes = len(rest)
    chain.fault = _beginning(process, before, pruned, files)
    return chain


def compare(chains: Mapping[str, Chain], sightings: Iterable[Sighting]) -> Fault | None:
    """The first head that somebody saw and that is not in its chain any more."""
    for one in sightings:
        chain = chains.get(one.process)
        if chain is None or not chain.first:
            return Fault(
                one.process,
                f"seen by {one.by}",
                f"record {one.head.seq} was there, no file is there now",
            )
        if one.head.seq < chain.first or chain.fault is not None:
            continue
        digest = chain.digests.get(one.head.seq)
        if digest is None:
            return Fault(
                one.process,
                f"seen by {one.by}",
                f"record {one.head.seq} was there, the log ends with {chain.head.seq}: its end"
                " was cut off",
            )
        if digest != one.head.sha256:
            return Fault(
                one.process,
                f"seen by {one.by}",
                f"record {one.head.seq} is another one than was there: the log was rewritten",
            )
    return None


def first_fault(chains: Mapping[str, Chain], more: Iterable[Sighting] = ()) -> Fault | None:
    """Of all chains together; `more` are heads that were kept elsewhere."""
    for chain in chains.values():
        if chain.fault is not None:
            return chain.fault
    seen = [sighting for chain in chains.values() for sighting in chain.seen]
    return compare(chains, [*seen, *more])


def _check_link(before: Head, record: Record) -> None:
    if record.seq > before.seq + 1:
        raise Corrupt(f"record {record.seq} follows {before.seq}: records were removed or moved")
    if record.seq <= before.seq:
        raise Corrupt(f"record {record.seq} follows {before.seq}: records were moved or repeated")
    if record.prev != before.sha256:
        raise Corrupt(
            f"record {record.seq} does not hold on to the one before it: one of the two was altered"
        )


def _take_in(chain: Chain, record: Record) -> Head | None:
    """What a record says of chains; the head that was pruned, if it says that."""
    kind = written_kind(record)
    if kind == _SEEN:
        by = f"{chain.process} at {record.at}"
        for process, head in _event(record, HeadsSeen).heads.items():
            chain.seen.append(Sighting(process, head, by))
    if kind == _PRUNED:
        return _event(record, RecordsPruned).through
    return None


def _event(record: Record, kind: type[E]) -> E:
    try:
        return msgspec.json.decode(record.event, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"record {record.seq}: {error}") from error


def _beginning(
    process: str, before: Head, pruned: Head | None, files: Sequence[tuple[str, bytes]]
) -> Fault | None:
    """Older records are gone: by the retention, which leaves a record of it, or by a hand."""
    if not before.seq:
        return None
    if pruned is None or pruned.seq < before.seq:
        reason = f"records up to {before.seq} are missing, and not by the retention"
        return Fault(process, f"{files[0][0]} line 1", reason)
    if pruned.seq == before.seq and pruned.sha256 != before.sha256:
        reason = f"record {before.seq} was another one when the retention removed it"
        return Fault(process, f"{files[0][0]} line 1", reason)
    return None
