"""Floods of strangers and of single peers."""

import pytest

from nodeapp.core.errors import Busy, ProtocolViolation
from nodeapp.p2p import admission as module
from nodeapp.p2p.admission import GLOBAL_FACTOR, MAX_FRAMES_PER_SECOND, Admission
from tests.fakes.clock import FakeClock


def come(admission: Admission, peer_id: str, purpose: str = "handshake") -> bool:
    try:
        with admission.stream(peer_id, purpose):
            return True
    except Busy:
        return False


@pytest.fixture
def flooded():
    """A host that as many strangers as it takes have knocked at."""
    admission = Admission(handshakes_per_minute=5, max_streams_per_peer=2)
    admission.has_paid("paying")
    for number in range(GLOBAL_FACTOR * 5):
        assert come(admission, f"stranger{number}")
    return admission


def test_new_strangers_are_kept_out_and_paying_peers_are_not(flooded):
    assert not come(flooded, "another stranger")
    assert come(flooded, "paying")


def test_a_paying_peer_has_its_own_limit(flooded):
    assert [come(flooded, "paying") for _ in range(6)] == [True] * 5 + [False]


def test_offers_are_still_told_while_handshakes_are_flooded(flooded):
    assert come(flooded, "another stranger", "capability")


def test_asking_for_offers_does_not_use_up_handshakes():
    admission = Admission(handshakes_per_minute=5, max_streams_per_peer=2)
    for _ in range(20):
        come(admission, "curious", "capability")
    assert come(admission, "curious")


def test_streams_of_one_peer_are_counted_while_they_live():
    admission = Admission(handshakes_per_minute=60, max_streams_per_peer=2)
    with admission.stream("peer"), admission.stream("peer"):
        assert not come(admission, "peer")
    assert come(admission, "peer")


def test_paying_peers_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(module, "MAX_PAYING_PEERS", 3)
    admission = Admission(handshakes_per_minute=5, max_streams_per_peer=2)
    for peer in ("a", "b", "c", "a", "d"):
        admission.has_paid(peer)
    assert list(admission._paying) == ["c", "a", "d"]


def test_a_flood_of_frames_ends_the_stream():
    clock = FakeClock()
    admission = Admission(handshakes_per_minute=5, max_streams_per_peer=2, clock=clock)
    for _ in range(MAX_FRAMES_PER_SECOND):
        admission.frame("peer")
    with pytest.raises(ProtocolViolation):
        admission.frame("peer")
    admission.frame("another peer")


def test_a_peer_may_go_on_after_a_pause_but_saves_nothing_up():
    clock = FakeClock()
    admission = Admission(handshakes_per_minute=5, max_streams_per_peer=2, clock=clock)
    for _ in range(MAX_FRAMES_PER_SECOND):
        admission.frame("peer")
    clock.now += 100.0
    for _ in range(MAX_FRAMES_PER_SECOND):
        admission.frame("peer")
    with pytest.raises(ProtocolViolation):
        admission.frame("peer")
    clock.now += 0.011
    admission.frame("peer")
    admission.frame("peer")
    with pytest.raises(ProtocolViolation):
        admission.frame("peer")


def test_nothing_is_kept_of_a_peer_that_has_gone():
    admission = Admission(handshakes_per_minute=5, max_streams_per_peer=2)
    with admission.stream("peer"):
        admission.frame("peer")
    assert admission._frames == {}
