"""Offers of other hosts, as heard by gossip: whoever asks is told whom we know.

Every record was signed by its wallet and its peer, so a directory can leave somebody out but not
make somebody up. `accept` runs on the trio thread and only reads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nodeapp.core.errors import NodeError, ProtocolViolation, Rejected
from nodeapp.core.ids import ModelId, PeerId
from nodeapp.network.streams import Stream
from nodeapp.p2p.admission import Admission
from nodeapp.security.capability import (
    LONGEST_LIFE_SECONDS,
    check_capability,
    decode_published,
)
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import MAX_LISTED, CapabilityRecord

MAX_RECORDS = 2000
LEAST_SECONDS_APART = 5
"""Between two records of one peer; its sequence is the time it was made."""
QUESTION_SECONDS = 10.0


class Directory:
    """Newest record of every peer; bounded, the ones heard longest ago go first."""

    def __init__(self, unix_seconds: Callable[[], float]) -> None:
        self._now = unix_seconds
        self._known: dict[PeerId, tuple[CapabilityRecord, pb.Capability]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def accept(self, message: bytes) -> CapabilityRecord:
        """The rule of the gossip topic: valid, and news.

        Raises:
            NodeError: not a valid record, or nothing new.
        """
        now = self._now()
        record = check_capability(decode_published(message), now)
        if record.not_after > now + LONGEST_LIFE_SECONDS:
            raise Rejected(f"offer is valid until {record.not_after}, more than a day from now")
        known = self._known.get(record.peer_id)
        if known is not None and record.sequence < known[0].sequence + LEAST_SECONDS_APART:
            raise Rejected(f"offer {record.sequence} of {record.peer_id} is not news")
        return record

    def take(self, message: bytes) -> None:
        """Keep what gossip brought; it was accepted before, but two may have come at once."""
        try:
            record = self.accept(message)
        except NodeError:
            return
        self._known.pop(record.peer_id, None)
        self._known[record.peer_id] = (record, decode_published(message))
        while len(self._known) > MAX_RECORDS:
            del self._known[next(iter(self._known))]

    def sellers(self, model_id: ModelId, chain_id: int) -> list[pb.Capability]:
        """Who sells a model now, newest first."""
        now = self._now()
        found = [
            capability
            for record, capability in reversed(self._known.values())
            if record.chain_id == chain_id
            and record.not_after >= now
            and any(offer.model_id == model_id for offer in record.models)
        ]
        return found[:MAX_LISTED]


async def serve_capability(
    stream: Stream,
    admission: Admission,
    directory: Directory,
    own: Callable[[int], Awaitable[pb.Capability]] | None,
) -> None:
    """Answer one question: our own offer on a chain (0: the first), or those we know of a model.

    Raises:
        Unavailable: the stream broke.
    """
    try:
        with admission.stream(stream.remote_peer_id, "capability"):
            frame = await stream.read_frame(1024, deadline_seconds=QUESTION_SECONDS)
            if frame is None:
                return
            message = envelope.decode(frame)
            if message.WhichOneof("body") != "capability_request":
                raise ProtocolViolation("capability_request expected")
            await stream.write_frame(await _reply(message.capability_request, directory, own))
    except Rejected as error:
        await stream.write_frame(envelope.encode_error(error))


async def _reply(
    request: pb.CapabilityRequest,
    directory: Directory,
    own: Callable[[int], Awaitable[pb.Capability]] | None,
) -> bytes:
    if not request.model_id:
        if own is None:
            raise Rejected("this node sells nothing")
        return envelope.encode(capability=await own(request.chain_id))
    found = directory.sellers(ModelId(request.model_id[:66]), request.chain_id)
    listed = pb.CapabilityList()
    for capability in found:
        listed.capabilities.append(capability)
        if listed.ByteSize() > envelope.MAX_STREAM_FRAME_BYTES - 1024:
            del listed.capabilities[-1]
            break
    return envelope.encode(capability_list=listed)
