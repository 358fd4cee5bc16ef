"""The log on the disk: torn ends, full files, full disks, several writers, somebody's hands."""

import multiprocessing
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.audit import BanLifted, Head, decode_record, genesis, written_kind
from nodeapp.core.audit_chain import first_fault
from nodeapp.core.errors import Unavailable
from nodeapp.security.audit import (
    MAX_TORN,
    AuditFile,
    Stamped,
    heads,
    processes,
    read_chains,
    read_files,
)

AT = "2026-11-23T18:00:00.000000Z"


def log_in(root, process="chain", *, file_bytes=1 << 20, files=8):
    return AuditFile(root, process, file_bytes=file_bytes, files=files)


def entry(number):
    return Stamped(AT, BanLifted(f"peer:{number}"))


def write(file, count, first=0):
    for number in range(first, first + count):
        file.append([entry(number)])


def active(root, process="chain"):
    return root / process / "audit.jsonl"


def kinds(root, process="chain"):
    lines = [line for _, text in read_files(root, process) for line in text.split(b"\n")[:-1]]
    return [written_kind(decode_record(line)) for line in lines]


def fault(root):
    return first_fault(read_chains(root))


def test_only_the_owner_may_read_it(tmp_path):
    write(log_in(tmp_path / "audit"), 1)
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o700
    assert active(tmp_path / "audit").parent.stat().st_mode & 0o777 == 0o700
    assert active(tmp_path / "audit").stat().st_mode & 0o777 == 0o600


def test_a_restarted_writer_goes_on_with_the_chain(tmp_path):
    write(log_in(tmp_path), 3)
    write(log_in(tmp_path), 3, first=3)
    chain = read_chains(tmp_path)["chain"]
    assert (chain.fault, chain.records, chain.head.seq) == (None, 6, 6)


@pytest.mark.parametrize("torn", [1, 20, 150])
def test_a_torn_last_record_is_put_aside_and_the_chain_goes_on(tmp_path, torn):
    write(log_in(tmp_path), 3)
    whole = active(tmp_path).read_bytes()
    last = whole.split(b"\n")[2]
    active(tmp_path).write_bytes(whole + last[:torn])
    write(log_in(tmp_path), 2, first=3)
    assert fault(tmp_path) is None
    assert kinds(tmp_path) == ["ban_lifted"] * 3 + ["tail_torn"] + ["ban_lifted"] * 2
    (kept,) = (tmp_path / "chain").glob("*.torn")
    assert kept.read_bytes() == last[:torn]
    assert kept.stat().st_mode & 0o777 == 0o600


@given(length=st.integers(0, 1100), zeros=st.integers(0, 600))
def test_whatever_a_power_cut_leaves_the_chain_goes_on(length, zeros):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(log_in(root), 5)
        left = active(root).read_bytes()[:length]
        active(root).write_bytes(left + b"\0" * zeros)
        write(log_in(root), 2, first=5)
        chain = read_chains(root)["chain"]
        whole = left.count(b"\n")
        is_torn = bool(zeros) or left[-1:] not in {b"", b"\n"}
        assert (chain.fault, chain.records) == (None, whole + is_torn + 2)


def test_an_end_of_zeros_is_torn_as_well(tmp_path):
    """What some file systems leave of a block that was never written."""
    write(log_in(tmp_path), 3)
    with active(tmp_path).open("ab") as file:
        file.write(b"\0" * 4096)
    write(log_in(tmp_path), 1)
    assert fault(tmp_path) is None
    assert "tail_torn" in kinds(tmp_path)


def test_torn_ends_do_not_pile_up(tmp_path):
    for number in range(MAX_TORN + 4):
        file = log_in(tmp_path)
        file.append([Stamped(f"2026-11-23T18:00:{number:02d}.000000Z", BanLifted("peer:x"))])
        with active(tmp_path).open("ab") as damaged:
            damaged.write(b"half")
    assert len(list((tmp_path / "chain").glob("*.torn"))) == MAX_TORN


def test_full_files_are_renamed_and_the_chain_goes_on(tmp_path):
    file = log_in(tmp_path, file_bytes=2000, files=100)
    write(file, 60)
    full = sorted((tmp_path / "chain").glob("0*.jsonl"))
    assert len(full) > 3
    assert full[0].name == "000000000001.jsonl"
    assert all(path.stat().st_size <= 2000 for path in full)
    chain = read_chains(tmp_path)["chain"]
    assert (chain.fault, chain.records, chain.head.seq) == (None, 60, 60)


def test_old_files_go_and_leave_a_record_of_it(tmp_path):
    file = log_in(tmp_path, file_bytes=2000, files=3)
    write(file, 200)
    assert len(list((tmp_path / "chain").glob("0*.jsonl"))) == 3
    chain = read_chains(tmp_path)["chain"]
    assert chain.fault is None
    assert chain.first > 100
    assert sum(path.stat().st_size for path in (tmp_path / "chain").iterdir()) < 4 * 2000 + 1000
    min((tmp_path / "chain").glob("0*.jsonl")).unlink()
    assert "not by the retention" in fault(tmp_path).reason


def test_a_power_cut_between_renaming_and_the_new_file_loses_nothing(tmp_path):
    write(log_in(tmp_path), 5)
    active(tmp_path).rename(active(tmp_path).with_name("000000000001.jsonl"))
    write(log_in(tmp_path), 5, first=5)
    chain = read_chains(tmp_path)["chain"]
    assert (chain.fault, chain.head.seq) == (None, 10)


def test_records_taken_away_from_a_running_writer_are_told_by_it(tmp_path):
    file = log_in(tmp_path)
    write(file, 6)
    lines = active(tmp_path).read_bytes().split(b"\n")
    active(tmp_path).write_bytes(b"\n".join(lines[:2]) + b"\n")
    write(file, 1)
    assert kinds(tmp_path) == ["ban_lifted", "ban_lifted", "tail_missing", "ban_lifted"]
    assert b'"known":{"seq":6' in active(tmp_path).read_bytes()


def test_a_removed_file_begins_anew_and_says_so(tmp_path):
    file = log_in(tmp_path)
    write(file, 3)
    seen = heads(tmp_path)
    active(tmp_path).unlink()
    write(file, 4)
    assert kinds(tmp_path)[0] == "tail_missing"
    assert seen["chain"].seq == 3
    assert read_chains(tmp_path)["chain"].digests[3] != seen["chain"].sha256


def test_heads_are_the_ends_of_all_logs_but_ones_own(tmp_path):
    write(log_in(tmp_path, "chain"), 3)
    write(log_in(tmp_path, "p2p"), 1)
    write(log_in(tmp_path, "watchdog"), 1)
    chains = read_chains(tmp_path)
    assert processes(tmp_path) == ["chain", "p2p", "watchdog"]
    assert heads(tmp_path, but="watchdog") == {
        "chain": chains["chain"].head,
        "p2p": chains["p2p"].head,
    }
    assert heads(tmp_path / "nowhere") == {}


def test_a_link_in_its_place_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "audit" / "chain").mkdir(parents=True)
    active(tmp_path / "audit").symlink_to(victim)
    with pytest.raises(Unavailable, match="cannot be written"):
        log_in(tmp_path / "audit").append([entry(1)])
    assert victim.read_text() == "mine\n"


@contextmanager
def no_file_over(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_half_a_record_does_not_stay_when_the_disk_is_full(tmp_path):
    file = log_in(tmp_path)
    write(file, 100)
    before = active(tmp_path).read_bytes()
    with no_file_over(len(before) + 50), pytest.raises(Unavailable, match="File too large"):
        file.append([entry(100)])
    assert active(tmp_path).read_bytes() == before
    write(file, 1, first=100)
    chain = read_chains(tmp_path)["chain"]
    assert (chain.fault, chain.records) == (None, 101)


def _many(root, number):
    file = log_in(root, "operator", file_bytes=8000, files=100)
    write(file, 50, first=number * 50)


def test_several_commands_share_a_log(tmp_path):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_many, args=(tmp_path, number)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    chain = read_chains(tmp_path)["operator"]
    assert (chain.fault, chain.records) == (None, 150)
    text = b"".join(content for _, content in read_files(tmp_path, "operator"))
    assert all(f'"peer:{number}"'.encode() in text for number in range(150))


def test_a_reader_sees_whole_chains_while_files_are_renamed(tmp_path):
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_many, args=(tmp_path, 0))
    child.start()
    while child.is_alive():
        assert fault(tmp_path) is None
    child.join(30)
    assert read_chains(tmp_path)["operator"].records == 50


def test_an_untouched_log_has_the_genesis_of_its_process(tmp_path):
    head = log_in(tmp_path).append([entry(0)])
    first = decode_record(active(tmp_path).read_bytes().split(b"\n")[0])
    assert (first.prev, head.seq) == (genesis("chain").sha256, 1)
    assert genesis("chain") != genesis("p2p") != Head(0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["chain"]
