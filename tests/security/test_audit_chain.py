"""A chain of records tells the first place that was altered, removed, moved or cut off."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core import audit
from nodeapp.core.audit import (
    MAX_LINE_BYTES,
    MAX_TEXT,
    AuditEvent,
    BanLifted,
    Banned,
    Head,
    HeadsSeen,
    RecordsPruned,
    decode_record,
    encode_record,
    genesis,
    kind_of,
)
from nodeapp.core.audit_chain import Sighting, compare, first_fault, kept_heads, read_chain
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.update import Phase, Refused, UpdateState
from nodeapp.core.update_record import told

AT = "2026-11-23T18:00:00.000000Z"


def lines_of(events, process="chain", head=None):
    head = head or genesis(process)
    lines = []
    for event in events:
        line, head = encode_record(head, AT, event)
        lines.append(line)
    return lines, head


def ten(process="chain"):
    return lines_of([BanLifted(f"peer:{number}") for number in range(10)], process)


def judge(lines, process="chain"):
    return read_chain(process, [("audit.jsonl", b"".join(lines))])


def test_a_whole_chain_has_no_fault():
    lines, head = ten()
    chain = judge(lines)
    assert (chain.fault, chain.head, chain.records, chain.first) == (None, head, 10, 1)


def test_an_empty_log_has_no_records_and_no_fault():
    chain = judge([])
    assert (chain.fault, chain.head, chain.records) == (None, genesis("chain"), 0)


@given(number=st.integers(0, 9), data=st.data())
def test_every_altered_byte_but_the_last_records_is_found(number, data):
    """Of the last record a kept head tells; see below."""
    lines, head = ten()
    line = lines[number]
    place = data.draw(st.integers(0, len(line) - 1))
    letter = data.draw(st.integers(0, 255).filter(lambda one: one != line[place]))
    lines[number] = line[:place] + bytes((letter,)) + line[place + 1 :]
    chain = judge(lines)
    others = {"chain": chain}
    assert first_fault(others, [Sighting("chain", head, "a backup")]) is not None
    if number < 8:
        assert chain.fault is not None


def test_the_altered_record_is_named():
    lines, _head = ten()
    lines[4] = lines[4].replace(b"peer:4", b"peer:5")
    fault = judge(lines).fault
    assert fault.place == "audit.jsonl line 6"
    assert "record 6 does not hold on to the one before it" in fault.reason


def test_a_removed_record_is_named():
    lines, _head = ten()
    del lines[3]
    fault = judge(lines).fault
    assert (fault.place, fault.reason) == (
        "audit.jsonl line 4",
        "record 5 follows 3: records were removed or moved",
    )


@given(st.permutations(range(10)))
def test_any_other_order_is_found(order):
    lines, _head = ten()
    fault = judge([lines[number] for number in order]).fault
    assert (fault is None) == (list(order) == list(range(10)))


def test_a_repeated_record_is_found():
    lines, _head = ten()
    assert "moved or repeated" in judge([*lines, lines[-1]]).fault.reason


def test_another_processes_log_is_not_this_ones():
    lines, _head = ten("chain")
    assert judge(lines, "p2p").fault.place == "audit.jsonl line 1"


def test_a_cut_off_end_is_missed_by_a_kept_head():
    lines, head = ten()
    chain = judge(lines[:7])
    assert chain.fault is None
    fault = compare({"chain": chain}, [Sighting("chain", head, "watchdog at noon")])
    assert fault.text() == (
        "chain: seen by watchdog at noon: record 10 was there, the log ends with 7: its end was"
        " cut off"
    )


def test_a_log_that_was_written_anew_is_another_one():
    lines, _head = lines_of([BanLifted(f"peer:{number}") for number in range(12)])
    _lines, head = ten()
    forged, _ = lines_of([BanLifted("peer:x")] * 12)
    kept = [Sighting("chain", head, "a backup")]
    assert compare({"chain": judge(lines)}, kept) is None
    assert "was rewritten" in compare({"chain": judge(forged)}, kept).reason


def test_a_log_that_is_gone_is_missed():
    _lines, head = ten()
    fault = first_fault({}, [Sighting("chain", head, "a backup")])
    assert "no file is there" in fault.reason


def test_one_process_witnesses_another():
    _lines, head = ten("p2p")
    watchdog, _ = lines_of([HeadsSeen({"p2p": head})], "watchdog")
    lines, _ = ten("p2p")
    chains = {"watchdog": judge(watchdog, "watchdog"), "p2p": judge(lines, "p2p")}
    assert first_fault(chains) is None
    chains["p2p"] = judge(lines[:-1], "p2p")
    assert first_fault(chains).place == f"seen by watchdog at {AT}"


def test_files_are_one_chain():
    lines, head = ten()
    files = [("000000000001.jsonl", b"".join(lines[:4])), ("audit.jsonl", b"".join(lines[4:]))]
    assert read_chain("chain", files).head == head
    assert read_chain("chain", files[1:]).fault is not None
    halved = [("000000000001.jsonl", b"".join(lines[:4])[:-1]), files[1]]
    assert "middle of a record" in read_chain("chain", halved).fault.reason


def test_the_retention_leaves_a_record_of_what_it_removed():
    lines, head = ten()
    more, _ = lines_of([RecordsPruned(head), BanLifted("peer:a")], head=head)
    assert judge(more).fault is None
    none, _ = lines_of([BanLifted("peer:a")], head=head)
    assert "not by the retention" in judge(none).fault.reason
    short, _ = lines_of([RecordsPruned(Head(9, head.sha256))], head=head)
    assert "not by the retention" in judge(short).fault.reason
    other, _ = lines_of([RecordsPruned(Head(10, "0" * 64))], head=head)
    assert "was another one" in judge(other).fault.reason
    assert len(lines) == 10


def test_a_head_from_before_the_retention_is_not_asked_for():
    _lines, head = ten()
    more, _ = lines_of([RecordsPruned(head)], head=head)
    assert compare({"chain": judge(more)}, [Sighting("chain", Head(3, "0" * 64), "x")]) is None


def test_a_line_that_is_being_written_is_no_fault():
    lines, head = ten()
    chain = judge([*lines, b'{"seq":11,'])
    assert (chain.fault, chain.head, chain.unfinished_bytes) == (None, head, 10)


def test_a_kind_of_a_later_release_is_judged_as_well():
    lines, head = ten()
    body = b'{"kind":"from_the_future","what":[1,2]}'
    record = audit.Record(11, AT, head.sha256, msgspec.Raw(body))
    line = msgspec.json.encode(record)
    assert judge([*lines, line + b"\n"]).head == Head(11, hashlib.sha256(line).hexdigest())


@given(st.text(), st.text(), st.integers(0, 1 << 62))
def test_whatever_a_peer_calls_itself_is_one_bounded_line(name, reason, seconds):
    event = Banned(name + "\ud800" * 400, reason * 50, seconds)
    line, _head = encode_record(genesis("p2p"), AT, event)
    assert line.count(b"\n") == 1
    assert len(line) < 8 * 2 * MAX_TEXT + 400 < MAX_LINE_BYTES
    assert decode_record(line[:-1]).seq == 1


@given(st.binary(max_size=300))
def test_garbage_is_a_fault_and_nothing_else(content):
    lines, _head = ten()
    chain = judge([*lines, content, b"\n"])
    assert chain.fault is not None


def kinds(base=AuditEvent):
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_kinds_have_names_of_their_own():
    names = [kind_of(kind) for kind in kinds()]
    assert len(set(names)) == len(names) >= 20
    assert "transaction_signed" in names


def test_no_kind_has_a_field_for_what_must_not_be_written():
    forbidden = {"prompt", "messages", "answer", "text", "password", "key", "raw", "signature"}
    for kind in kinds():
        assert not forbidden & set(kind.__struct_fields__), kind


def test_kept_heads_are_read_from_both_forms():
    head = Head(3, "a" * 64)
    for name in ("heads", "audit"):
        text = msgspec.json.encode({name: {"p2p": head}, "made_at": 3})
        assert kept_heads(text, "a file") == [Sighting("p2p", head, "a file")]
    for wrong in (b"{}", b"[]", b"\xff", b'{"heads":{"p2p":{"seq":-1,"sha256":""}}}'):
        with pytest.raises(InvalidRequest, match="a file holds no heads"):
            kept_heads(wrong, "a file")


def test_a_refused_release_and_a_phase_are_told_once():
    before = UpdateState(current="1.0.0", phase=Phase.BOOTED)
    after = UpdateState(
        current="1.0.0",
        phase=Phase.ROLLED_BACK,
        blacklist=(Refused("1.1.0", "no tokens"),),
        reason="no tokens",
    )
    assert [kind_of(one) for one in told(before, after)] == ["update_step", "release_blacklisted"]
    assert told(after, after) == ()
