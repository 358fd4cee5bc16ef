"""What a renter's run reports is one JSON line per event, named in snake case."""

import msgspec
import pytest

from nodeapp.renter.events import AnyEvent, Reconnecting, SessionClosed, TokensReceived

decode = msgspec.json.Decoder(AnyEvent).decode


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (TokensReceived(3, "abc", 0.5), "tokens_received"),
        (Reconnecting("host ended the stream", 12), "reconnecting"),
        (SessionClosed(7, "closing"), "session_closed"),
    ],
)
def test_an_event_is_a_line_that_names_it(event, name):
    line = msgspec.json.encode(event)
    assert msgspec.json.decode(line)["event"] == name
    assert b"\n" not in line
    assert decode(line) == event
