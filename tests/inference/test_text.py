"""Tokens become text: whole characters, stop strings cut, ids and text always together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeapp.inference.text import Released, TextAssembler


def feed_all(assembler, pieces):
    released = []
    for token, piece in enumerate(pieces):
        released.append(assembler.feed(token, piece))
        if released[-1].is_stopped:
            return released
    released.append(assembler.flush())
    return released


def joined(released):
    ids = [token for one in released for token in one.token_ids]
    return ids, "".join(one.text for one in released)


def test_plain_tokens_pass_at_once():
    assert TextAssembler(()).feed(5, b"Hi") == Released((5,), "Hi")


def test_a_character_split_over_tokens_comes_whole_with_all_its_tokens():
    assembler = TextAssembler(())
    euro = "€".encode()
    assert assembler.feed(1, euro[:1]) == Released((), "")
    assert assembler.feed(2, euro[1:2]) == Released((), "")
    assert assembler.feed(3, euro[2:]) == Released((1, 2, 3), "€")


def test_an_unfinished_character_is_flushed_as_replacement():
    assembler = TextAssembler(())
    assembler.feed(1, "€".encode()[:2])
    assert assembler.flush() == Released((1,), "\ufffd")


def test_a_stop_string_over_token_borders_is_neither_delivered_nor_counted():
    released = feed_all(TextAssembler(("END",)), [b"go", b" E", b"N", b"D", b"x"])
    assert joined(released) == ([0, 1], "go ")
    assert released[-1].is_stopped


def test_what_looked_like_a_stop_string_is_released_when_it_was_none():
    released = feed_all(TextAssembler(("END",)), [b"E", b"N", b"O", b"ugh"])
    assert [one.token_ids for one in released[:3]] == [(), (), (0, 1, 2)]
    assert joined(released) == ([0, 1, 2, 3], "ENOugh")


def test_the_earliest_of_several_stop_strings_wins():
    released = feed_all(TextAssembler(("later", "st")), [b"a first later"])
    assert joined(released) == ([0], "a fir")


def test_a_stop_string_at_the_very_beginning_delivers_nothing():
    released = feed_all(TextAssembler(("no",)), [b"no"])
    assert joined(released) == ([], "")
    assert released[-1].is_stopped


def test_invalid_bytes_do_not_hold_the_stream():
    released = feed_all(TextAssembler(()), [b"\xff", b"ok"])
    assert joined(released) == ([0, 1], "\ufffdok")


pieces = st.lists(st.sampled_from([b"a", b"b", b"ab", b"", b"\xe2", b"\x82", b"\xac", b"\xff"]))
stops = st.lists(st.sampled_from(["ab", "aab", "b€", "ba"]), max_size=3)


@given(pieces=pieces, stops=stops)
def test_no_token_is_lost_and_no_stop_string_delivered(pieces, stops):
    released = feed_all(TextAssembler(stops), pieces)
    ids, text = joined(released)
    assert ids == list(range(len(ids)))
    assert not any(stop in text for stop in stops)
    if not released[-1].is_stopped:
        assert len(ids) == len(pieces)
        assert text == b"".join(pieces).decode(errors="replace")
    for one in released:
        assert one.token_ids or not one.text
