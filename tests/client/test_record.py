"""The renter's file holds every token before it is acknowledged, and survives a crash."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.renter.record import SessionHead, SessionRecord, newest_session, record_path
from tests.fakes.paid_session import HOST, JOB, MARKET, running_hash

HEAD = SessionHead(
    31337,
    MARKET,
    JOB,
    HOST,
    "12D3KooW",
    "0x" + "ab" * 32,
    "http://127.0.0.1:1",
    ("/ip4/127.0.0.1",),
)


def test_a_record_comes_back_with_tokens_and_hash(tmp_path):
    record = SessionRecord.create(tmp_path / "sessions", HEAD)
    assert record.receive(0, (1, 2, 3)) == (1, 2, 3)
    assert record.receive(3, (4,)) == (4,)
    again = SessionRecord.load(tmp_path / "sessions", JOB)
    assert (again.head, again.token_ids) == (HEAD, [1, 2, 3, 4])
    assert again.running_hash == record.running_hash == running_hash([1, 2, 3, 4])


def test_a_batch_sent_again_is_kept_once(tmp_path):
    record = SessionRecord.create(tmp_path, HEAD)
    record.receive(0, (1, 2, 3))
    assert record.receive(1, (2, 3)) == ()
    assert record.receive(2, (3, 4)) == (4,)
    assert SessionRecord.load(tmp_path, JOB).token_ids == [1, 2, 3, 4]


def test_a_gap_is_refused_and_not_written(tmp_path):
    record = SessionRecord.create(tmp_path, HEAD)
    record.receive(0, (1,))
    with pytest.raises(InvalidRequest, match="skipped tokens 1 to 2"):
        record.receive(2, (3,))
    assert SessionRecord.load(tmp_path, JOB).token_ids == [1]


def test_changed_tokens_are_refused_and_not_written(tmp_path):
    record = SessionRecord.create(tmp_path, HEAD)
    record.receive(0, (1, 2))
    with pytest.raises(InvalidRequest, match="changed tokens"):
        record.receive(1, (9, 3))
    assert SessionRecord.load(tmp_path, JOB).token_ids == [1, 2]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_torn_by_a_crash_is_dropped_and_written_anew(tmp_path, cut):
    record = SessionRecord.create(tmp_path, HEAD)
    record.receive(0, (1, 2))
    path = record_path(tmp_path, JOB)
    whole = path.stat().st_size
    record.receive(2, (3, 4))
    os.truncate(path, path.stat().st_size - cut)
    again = SessionRecord.load(tmp_path, JOB)
    assert again.token_ids == [1, 2]
    assert path.stat().st_size == whole
    again.receive(2, (3, 4))
    assert SessionRecord.load(tmp_path, JOB).token_ids == [1, 2, 3, 4]


def test_a_session_of_the_same_number_on_another_chain_is_set_aside(tmp_path):
    SessionRecord.create(tmp_path, HEAD).receive(0, (1, 2))
    SessionRecord.create(tmp_path, HEAD).receive(0, (7,))
    assert SessionRecord.load(tmp_path, JOB).token_ids == [7]
    assert newest_session(tmp_path) == JOB
    assert record_path(tmp_path, JOB).with_name("session-7.jsonl.old").exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    path = record_path(tmp_path, JOB)
    for content in (b"hello\n", b'{"type":"tokens","first_token":0,"ids":[1]}\n', b"", b"{"):
        path.write_bytes(content)
        with pytest.raises(InvalidRequest):
            SessionRecord.load(tmp_path, JOB)


def test_a_session_never_had_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="session 7"):
        SessionRecord.load(tmp_path, JOB)
    with pytest.raises(NotFound, match="renter chat"):
        newest_session(tmp_path)


def test_the_newest_session_has_the_highest_number(tmp_path):
    for number in (2, 10, 9):
        record_path(tmp_path, number).write_bytes(b"")
    assert newest_session(tmp_path) == 10


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(st.integers(0, 2**21), max_size=5), min_size=1, max_size=6),
    cut=st.integers(0, 60),
)
def test_property_after_any_cut_a_prefix_is_left(tmp_path_factory, batches, cut):
    directory = tmp_path_factory.mktemp("sessions")
    record = SessionRecord.create(directory, HEAD)
    head_bytes = record_path(directory, JOB).stat().st_size
    for batch in batches:
        record.receive(len(record.token_ids), tuple(batch))
    path = record_path(directory, JOB)
    os.truncate(path, max(head_bytes, path.stat().st_size - cut))
    again = SessionRecord.load(directory, JOB)
    assert record.token_ids[: len(again.token_ids)] == again.token_ids
