"""Proof envelopes and transcripts by CID, from the host itself.

A host behind a router has no portal that renters can reach; over libp2p they reach it anyway. The
bytes are the CID's or the renter drops them, and transcripts are sealed for their renter.
"""

from __future__ import annotations

from nodeapp.core.errors import ProtocolViolation, Rejected
from nodeapp.network.streams import Stream
from nodeapp.p2p.admission import Admission
from nodeapp.rpc.storage import StorageClient
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.envelope import RESULT_PART_BYTES
from nodeapp.wire.transcript import MAX_TRANSCRIPT_BYTES

QUESTION_SECONDS = 10.0


async def serve_result(stream: Stream, admission: Admission, storage: StorageClient) -> None:
    """Answer one question.

    Raises:
        Unavailable: the stream broke, or the storage process does not answer.
    """
    try:
        with admission.stream(stream.remote_peer_id, "result"):
            frame = await stream.read_frame(1024, deadline_seconds=QUESTION_SECONDS)
            if frame is None:
                return
            message = envelope.decode(frame)
            if message.WhichOneof("body") != "result_request":
                raise ProtocolViolation("result_request expected")
            cid = message.result_request.cid
            blob = await storage.load(cid, max_bytes=MAX_TRANSCRIPT_BYTES)
            for start in range(0, max(1, len(blob)), RESULT_PART_BYTES):
                part = blob[start : start + RESULT_PART_BYTES]
                data = pb.ResultData(total_bytes=len(blob), data=part)
                await stream.write_frame(envelope.encode(result_data=data))
    except Rejected as error:
        await stream.write_frame(envelope.encode_error(error))
