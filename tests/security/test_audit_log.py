"""A process's log as its parts use it: never waited for, never fatal, bounded, honest about gaps."""

import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from nodeapp.core.audit import (
    STRANGERS_PER_HOUR,
    BanLifted,
    Head,
    HeadsSeen,
    ProcessStopped,
    RenterRefused,
    Unrecorded,
    decode_record,
)
from nodeapp.core.audit_chain import first_fault
from nodeapp.core.errors import Unavailable
from nodeapp.security.audit import AuditFile, read_chains, read_files
from nodeapp.service.audit import MAX_WAITING, AuditLog, DirectAudit, Limits, audit_root, witness
from nodeapp.service.metrics import Metrics
from tests.fakes.clock import FakeClock

REFUSED = RenterRefused("peer", "/ip4/203.0.113.7", "unauthorised", "login is not signed")


class Failing:
    """A disk that can be full, and slow."""

    def __init__(self, file):
        self.file = file
        self.is_full = False
        self.gate = threading.Event()
        self.gate.set()

    def append(self, entries):
        self.gate.wait(10)
        if self.is_full:
            raise Unavailable("audit log cannot be written: No space left on device")
        return self.file.append(entries)


def file_in(root, process="p2p"):
    return AuditFile(root, process, file_bytes=1 << 20, files=8)


def events(root, process="p2p"):
    text = b"".join(content for _, content in read_files(root, process))
    return [msgspec.json.decode(decode_record(line).event) for line in text.split(b"\n") if line]


@pytest.fixture
def clock():
    return FakeClock()


def test_a_flood_of_strangers_is_bounded_and_counted(tmp_path, clock):
    log = AuditLog(file_in(tmp_path), clock, Metrics("p2p"))
    for _ in range(STRANGERS_PER_HOUR + 812):
        log.record(REFUSED)
    log.record(BanLifted("peer:x"))
    clock.now += 3600
    log.record(REFUSED)
    log.close(ProcessStopped(""))
    kinds = [one["kind"] for one in events(tmp_path)]
    assert kinds.count("renter_refused") == STRANGERS_PER_HOUR + 1
    assert kinds[-4:] == ["ban_lifted", "records_suppressed", "renter_refused", "process_stopped"]
    assert events(tmp_path)[-3] == {
        "kind": "records_suppressed",
        "of": "renter_refused",
        "count": 812,
    }


def test_what_was_suppressed_is_told_at_the_end(tmp_path, clock):
    log = AuditLog(file_in(tmp_path), clock, Metrics("p2p"))
    for _ in range(STRANGERS_PER_HOUR + 3):
        log.record(REFUSED)
    log.close(ProcessStopped(""))
    assert events(tmp_path)[-2]["count"] == 3


def test_a_stranger_cannot_suppress_what_the_operator_does():
    limits = Limits()
    for _ in range(10_000):
        limits.admits(REFUSED, 0.0)
    assert limits.admits(BanLifted("peer:x"), 0.0)


def test_an_hour_of_flood_writes_no_more_than_an_hours_worth():
    limits = Limits()
    written = sum(limits.admits(REFUSED, number / 10) for number in range(36_000))
    assert written <= 2 * STRANGERS_PER_HOUR


async def test_kept_is_on_the_disk_when_it_comes_back(tmp_path, clock):
    log = AuditLog(file_in(tmp_path), clock, Metrics("p2p"))
    await log.keep(BanLifted("peer:x"))
    assert [one["kind"] for one in events(tmp_path)] == ["ban_lifted"]
    log.close(ProcessStopped(""))


async def test_a_full_disk_stops_nobody_and_is_told(tmp_path, clock):
    disk, metrics = Failing(file_in(tmp_path)), Metrics("p2p")
    log = AuditLog(disk, clock, metrics)
    await log.keep(BanLifted("peer:1"))
    disk.is_full = True
    for number in range(5):
        async with asyncio.timeout(5):
            await log.keep(BanLifted(f"peer:lost{number}"))
    assert log.trouble.startswith("audit log: 5 records lost, audit log cannot be written")
    text = metrics.render().decode()
    assert "fabstir_p2p_audit_lost_total 5.0" in text
    assert "fabstir_p2p_audit_failing 1.0" in text
    disk.is_full = False
    await log.keep(BanLifted("peer:2"))
    assert log.trouble == ""
    assert "fabstir_p2p_audit_failing 0.0" in metrics.render().decode()
    log.close(ProcessStopped(""))
    found = events(tmp_path)
    assert [one["kind"] for one in found] == [
        "ban_lifted",
        "records_lost",
        "ban_lifted",
        "process_stopped",
    ]
    assert found[1]["count"] == 5
    assert first_fault(read_chains(tmp_path)) is None


def test_a_slow_disk_holds_nobody_up(tmp_path, clock):
    disk = Failing(file_in(tmp_path))
    log = AuditLog(disk, clock, Metrics("p2p"))
    disk.gate.clear()
    began = time.monotonic()
    for number in range(MAX_WAITING + 500):
        log.record(BanLifted(f"peer:{number}"))
    assert time.monotonic() - began < 5
    assert "records lost, more was told than the disk takes" in log.trouble
    disk.gate.set()
    log.close(ProcessStopped(""))
    found = events(tmp_path)
    lost = sum(one["count"] for one in found if one["kind"] == "records_lost")
    written = sum(one["kind"] == "ban_lifted" for one in found)
    assert written + lost == MAX_WAITING + 500
    assert lost >= 400


def test_threads_tell_into_one_chain(tmp_path, clock):
    log = AuditLog(file_in(tmp_path), clock, Metrics("p2p"))

    def tell(name):
        for number in range(50):
            log.record(BanLifted(f"peer:{name}-{number}"))

    threads = [threading.Thread(target=tell, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    log.close(ProcessStopped(""))
    assert first_fault(read_chains(tmp_path)) is None
    names = [one["name"] for one in events(tmp_path)[:-1]]
    assert len(set(names)) == 200
    for name in range(4):
        mine = [one for one in names if one.startswith(f"peer:{name}-")]
        assert mine == [f"peer:{name}-{number}" for number in range(50)]


def test_a_command_goes_on_when_its_record_cannot_be_written(tmp_path, clock):
    disk = Failing(file_in(tmp_path))
    disk.is_full = True
    DirectAudit(disk, clock, tmp_path).record(BanLifted("peer:x"))
    disk.is_full = False
    DirectAudit(disk, clock, tmp_path).record(BanLifted("peer:y"))
    assert [one["name"] for one in events(tmp_path)] == ["peer:y"]


class Told(Unrecorded):
    """A sink that lets go of whoever waits for an event."""

    def __init__(self):
        self.events = asyncio.Queue()

    def record(self, event):
        self.events.put_nowait(event)


async def test_a_witness_writes_down_where_the_others_end(tmp_path, clock, monkeypatch):
    monkeypatch.setattr("nodeapp.service.audit.WITNESS_SECONDS", 0.01)
    root = audit_root(tmp_path)
    chain, updater = (
        DirectAudit(file_in(root, name), clock, tmp_path) for name in ("chain", "updater")
    )
    chain.record(BanLifted("peer:1"))
    updater.record(BanLifted("peer:1"))
    told = Told()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(witness(told, tmp_path, "watchdog", clock))
        first = await told.events.get()
        assert {name: head.seq for name, head in first.heads.items()} == {"chain": 1, "updater": 1}
        # Another witness's words alone are no reason to write: they would never end.
        updater.record(HeadsSeen(first.heads))
        chain.record(BanLifted("peer:2"))
        second = await told.events.get()
        assert second.heads["chain"].seq == 2
        updater.record(BanLifted("peer:3"))
        clock.now += 3600
        third = await told.events.get()
        assert set(third.heads) == {"updater"}
        task.cancel()
    assert told.events.empty()


def test_a_command_beside_no_state_leaves_nothing(tmp_path, clock):
    state = tmp_path / "nowhere"
    DirectAudit(file_in(audit_root(state)), clock, state).record(BanLifted("peer:x"))
    assert not state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_command_of_root_writes_as_the_states_owner(clock):
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        os.chown(state, 65534, 65534)
        DirectAudit(file_in(audit_root(state)), clock, state).record(BanLifted("peer:x"))
        made = [state / "audit", *(state / "audit").rglob("*")]
        assert len(made) == 4
        assert {path.stat().st_uid for path in made} == {65534}
    assert os.geteuid() == 0


async def test_whoever_gives_up_waiting_stops_no_record(tmp_path, clock):
    disk = Failing(file_in(tmp_path))
    log = AuditLog(disk, clock, Metrics("p2p"))
    disk.gate.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await log.keep(BanLifted("peer:1"))
    disk.gate.set()
    async with asyncio.timeout(5):
        await log.keep(BanLifted("peer:2"))
    log.close(ProcessStopped(""))
    assert [one["kind"] for one in events(tmp_path)] == ["ban_lifted"] * 2 + ["process_stopped"]


async def test_a_record_that_cannot_be_encoded_holds_nobody_up(tmp_path, clock):
    log = AuditLog(file_in(tmp_path), clock, Metrics("p2p"))
    async with asyncio.timeout(5):
        await log.keep(HeadsSeen({"\ud800": Head(1, "a" * 64)}))
        assert "a record has a fault: UnicodeEncodeError" in log.trouble
        await log.keep(BanLifted("peer:2"))
    log.close(ProcessStopped(""))
    kinds = [one["kind"] for one in events(tmp_path)]
    assert kinds == ["records_lost", "ban_lifted", "process_stopped"]


async def test_a_witness_lives_on_when_there_is_nothing_to_look_at(tmp_path, clock, monkeypatch):
    monkeypatch.setattr("nodeapp.service.audit.FIRST_LOOK_SECONDS", 0.01)
    root, told = audit_root(tmp_path), Told()
    root.write_text("in the way")
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        with capture_logs() as lines:
            task = tasks.create_task(witness(told, tmp_path, "watchdog", clock))
            while not lines:
                await asyncio.sleep(0.01)
        assert lines[0]["event"] == "audit logs cannot be looked at"
        root.unlink()
        DirectAudit(file_in(root, "chain"), clock, tmp_path).record(BanLifted("peer:1"))
        assert set((await told.events.get()).heads) == {"chain"}
        task.cancel()
