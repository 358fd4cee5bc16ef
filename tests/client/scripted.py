"""A host's side of a link as a list of messages."""

from nodeapp.core.errors import Unavailable
from nodeapp.wire import fabstir_pb2 as pb


class ScriptedLink:
    """Gives out its messages in order, then is gone; keeps what is sent to it."""

    def __init__(self, *messages: pb.Envelope) -> None:
        self._messages = list(messages)
        self.sent = []

    async def receive(self) -> pb.Envelope:
        if not self._messages:
            raise Unavailable("host ended the stream")
        return self._messages.pop(0)

    async def send(self, **body) -> None:
        self.sent.append(body)


def tokens(first: int, ids) -> pb.Envelope:
    ids = list(ids)
    return pb.Envelope(tokens=pb.Tokens(first_token=first, ids=ids, text="x" * len(ids)))
