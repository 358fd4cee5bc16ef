"""How a process writes its audit log: one line in the life of each, `open_audit`.

Rules of this file: telling never waits and never fails; one thread writes, in the order of telling;
what cannot be written is counted, shown by /readyz and metrics, and told in the log itself as soon
as it can be written again. Nothing here is on the path of a token.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import nodeapp
from nodeapp.core.audit import (
    AuditEvent,
    AuditSink,
    Head,
    HeadsSeen,
    ProcessStarted,
    ProcessStopped,
    RecordsLost,
    RecordsSuppressed,
    kind_of,
)
from nodeapp.core.errors import Unavailable
from nodeapp.security.audit import DIRECTORY, AuditFile, Stamped, heads
from nodeapp.security.ownership import acting_as_owner
from nodeapp.service.clock import Clock, SystemClock
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import NodeSettings, Section

MAX_WAITING = 1000
MAX_BATCH = 64
"""Written as one; a file may grow over its bound by no more than this."""
CLOSE_SECONDS = 2.0
HOUR_SECONDS = 3600.0
WITNESSES = ("watchdog", "updater")
"""Who writes down where the others' logs end: whoever cuts one off has to rewrite these as well."""
WITNESS_SECONDS = 60.0
FIRST_LOOK_SECONDS = 2.0
"""As long as nothing was seen: the others are starting."""
WITNESS_REST_SECONDS = 3600.0
"""When nobody but the witnesses wrote anything."""
_log = get_logger(__name__)


@dataclass(slots=True)
class _Allowance:
    """A bucket for one kind: full at the beginning, filled again over an hour."""

    left: float
    since: float
    suppressed: int = 0


@dataclass(slots=True)
class Limits:
    """How much of what strangers cause is written; not thread-safe."""

    _kinds: dict[str, _Allowance] = field(default_factory=dict)

    def admits(self, event: AuditEvent, now: float) -> bool:
        """Whether it is written; if not, it is counted."""
        if not event.per_hour:
            return True
        kind = kind_of(event)
        one = self._kinds.setdefault(kind, _Allowance(float(event.per_hour), now))
        filled = one.left + (now - one.since) * event.per_hour / HOUR_SECONDS
        one.left, one.since = min(filled, float(event.per_hour)), now
        if one.left < 1.0:
            one.suppressed += 1
            return False
        one.left -= 1.0
        return True

    def counted(self, kind: str = "") -> list[AuditEvent]:
        """What was not written until now, of one kind or all; forgotten with this."""
        found: list[AuditEvent] = []
        for name, one in self._kinds.items():
            if one.suppressed and kind in ("", name):
                found.append(RecordsSuppressed(name, one.suppressed))
                one.suppressed = 0
        return found


@dataclass(frozen=True, slots=True)
class _Told:
    entries: tuple[Stamped, ...]
    written: Future[None] | None = None


class AuditLog:
    """The sink of a running process."""

    def __init__(self, file: AuditFile, clock: Clock, metrics: Metrics) -> None:
        self._file = file
        self._clock = clock
        self._limits = Limits()
        self._lock = threading.Lock()  # guards: limits, and that entries go in as they were told
        self._waiting: queue.Queue[_Told | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._reason = ""
        self._counting = threading.Lock()  # guards: the two above
        self._records = metrics.counter("audit_records_total", "Records of the audit log")
        self._lost_total = metrics.counter("audit_lost_total", "Records that were not written")
        self._failing = metrics.gauge("audit_failing", "1: the audit log cannot be written")
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """For the readiness line; "" when all is well."""
        return f"audit log: {self._lost} records lost, {self._reason}" if self._reason else ""

    def record(self, event: AuditEvent) -> None:
        """See AuditSink."""
        self._tell(event, None)

    async def keep(self, event: AuditEvent) -> None:
        """See AuditSink."""
        written: Future[None] = Future()
        # Whoever waits may be cancelled; what it waits for is done all the same.
        written.set_running_or_notify_cancel()
        if self._tell(event, written):
            await asyncio.wrap_future(written)

    def close(self, last: AuditEvent) -> None:
        """Write what was told, and a last event; waits CLOSE_SECONDS at most."""
        with self._lock:
            told = _Told(self._stamped([*self._limits.counted(), last]))
        try:
            self._waiting.put(told, timeout=CLOSE_SECONDS)
            self._waiting.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            _log.error("audit log ends without its last records")
            return
        self._thread.join(CLOSE_SECONDS)

    def _tell(self, event: AuditEvent, written: Future[None] | None) -> bool:
        with self._lock:
            if not self._limits.admits(event, self._clock.monotonic_seconds()):
                return False
            entries = [*self._limits.counted(kind_of(event)), event]
            return self._put(_Told(self._stamped(entries), written))

    def _stamped(self, events: Sequence[AuditEvent]) -> tuple[Stamped, ...]:
        return stamped(events, self._clock)

    def _put(self, told: _Told) -> bool:
        try:
            self._waiting.put_nowait(told)
        except queue.Full:
            self._note_lost(told, "more was told than the disk takes")
            return False
        return True

    def _run(self) -> None:
        while True:
            told = self._waiting.get()
            batch: list[_Told] = []
            while told is not None:
                batch.append(told)
                if len(batch) == MAX_BATCH:
                    break
                try:
                    told = self._waiting.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._write(batch)
            if told is None:
                return

    def _write(self, batch: Sequence[_Told]) -> None:
        entries = [entry for told in batch for entry in told.entries]
        missed = self._lost
        if missed:
            entries.insert(0, Stamped(entries[0].at, RecordsLost(missed, self._reason)))
        failure = self._failure(entries)
        if failure:
            for told in batch:
                self._note_lost(told, failure)
        else:
            with self._counting:
                self._lost -= missed
                self._reason = self._reason if self._lost else ""
                self._failing.set(int(bool(self._reason)))
            self._records.inc(len(entries))
        for told in batch:
            if told.written is not None:
                told.written.set_result(None)

    def _failure(self, entries: Sequence[Stamped]) -> str:
        """Append; "" when that went well."""
        try:
            self._file.append(entries)
        except Unavailable as error:
            if not self._reason:
                _log.error("audit log is not written", error=error.message)
            return error.message
        except Exception as error:  # noqa: BLE001  # a fault in a record must hold nobody up
            _log.exception("audit log has a fault")
            return f"a record has a fault: {type(error).__name__}"
        return ""

    def _note_lost(self, told: _Told, reason: str) -> None:
        with self._counting:
            self._lost += len(told.entries)
            self._reason = reason
            self._failing.set(1)
        self._lost_total.inc(len(told.entries))


class DirectAudit:
    """The sink of a command: written before it goes on, a failure is told and no more.

    Where there is no state there is no log. Root writes as whoever owns the state: a log that the
    node may not read would be missing in its backups.
    """

    def __init__(self, file: AuditFile, clock: Clock, state: Path) -> None:
        self._file = file
        self._clock = clock
        self._state = state

    def record(self, event: AuditEvent) -> None:
        """See AuditSink."""
        if not self._state.is_dir():
            return
        try:
            with acting_as_owner(self._state):
                self._file.append(stamped([event], self._clock))
        except Unavailable as error:
            _log.warning("audit log is not written", error=error.message)
        except OSError as error:  # a root without the right to be somebody else
            _log.warning("audit log is not written", error=str(error))

    async def keep(self, event: AuditEvent) -> None:
        """See AuditSink."""
        await asyncio.to_thread(self.record, event)


def direct_audit(node: NodeSettings, name: str) -> DirectAudit:
    """For a command that has a log of its own: "operator", "launcher", "boot".

    Raises:
        InvalidRequest: see resolve_paths.
    """
    return direct_audit_in(resolve_paths(node).state, node, name)


def direct_audit_in(state: Path, node: NodeSettings, name: str) -> DirectAudit:
    """The same where the state is known and the settings are not: "provision"."""
    return DirectAudit(audit_file(node, state, name), SystemClock(), state)


def audit_root(state: Path) -> Path:
    """Where every process has its log."""
    return state / DIRECTORY


def audit_file(node: NodeSettings, state: Path, process: str) -> AuditFile:
    """By the settings."""
    return AuditFile(
        audit_root(state), process, file_bytes=node.audit_file_bytes, files=node.audit_files
    )


def started(node: NodeSettings, section: Section | None, pid: int) -> ProcessStarted:
    """The first event of a run."""
    told = hashlib.sha256(msgspec.json.encode([node, section])).hexdigest()
    return ProcessStarted(nodeapp.__version__, told, pid)


def stopped(failure: str) -> ProcessStopped:
    """The last one."""
    return ProcessStopped(failure)


def stamped(events: Sequence[AuditEvent], clock: Clock) -> tuple[Stamped, ...]:
    """With the present time, UTC."""
    now = dt.datetime.fromtimestamp(clock.unix_seconds(), dt.UTC)
    at = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return tuple(Stamped(at, event) for event in events)


def steady_heads(root: Path) -> dict[str, Head]:
    """Of all logs together: no witness among them has seen more of another than this says.

    Raises:
        Unavailable: the logs cannot be read.
    """
    before = heads(root)
    while True:
        now = heads(root)
        if all(before.get(one) == now.get(one) for one in WITNESSES):
            return now
        before = now


async def witness(audit: AuditSink, state: Path, process: str, clock: Clock) -> None:
    """Write down every minute where the others' logs end, when they went on; for ever."""
    seen = dict[str, str]()
    told_at = -WITNESS_REST_SECONDS
    while True:
        try:
            found = await asyncio.to_thread(heads, audit_root(state), but=process)
        except Unavailable as error:
            _log.warning("audit logs cannot be looked at", error=error.message)
            found = {}
        new = {name: head for name, head in found.items() if seen.get(name) != head.sha256}
        now = clock.monotonic_seconds()
        # Two witnesses that wrote down each other's words would never stop.
        if new.keys() - WITNESSES or (new and now - told_at >= WITNESS_REST_SECONDS):
            audit.record(HeadsSeen(new))
            seen |= {name: head.sha256 for name, head in new.items()}
            told_at = now
        await asyncio.sleep(WITNESS_SECONDS if seen else FIRST_LOOK_SECONDS)
