"""Can others reach this host? Asked of peers, which dial back, and told in one sentence.

A peer dials only the address a question came from, so nobody can be made to knock elsewhere. It
opens a plain TCP connection of its own: the one the question came on proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nodeapp.core.errors import InvalidRequest, NodeError, ProtocolViolation, Rejected
from nodeapp.core.ids import PeerId
from nodeapp.network.host import Libp2pHost
from nodeapp.network.streams import Stream
from nodeapp.p2p.admission import Admission
from nodeapp.service.logs import get_logger
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.addresses import is_public, tcp_endpoint

REACH_PROTOCOL = "/fabstir/reach/1.0.0"
MAX_PORTS = 4
DIAL_SECONDS = 5.0
ANSWER_SECONDS = MAX_PORTS * DIAL_SECONDS + 5.0
PEERS_ASKED = 3
GREETING = b"\x13/multistream/1.0.0\n"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one peer found."""

    peer_id: PeerId
    observed_address: str
    reachable: frozenset[int]
    reasons: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Reachability:
    """What the peers found together; `is_reachable` None: nobody could be asked."""

    sentence: str
    is_reachable: bool | None = None


async def serve_dial_back(stream: Stream, admission: Admission) -> None:
    """Answer one question."""
    try:
        with admission.stream(stream.remote_peer_id, "dial-back"):
            frame = await stream.read_frame(1024, deadline_seconds=10.0)
            if frame is None:
                return
            message = envelope.decode(frame)
            if message.WhichOneof("body") != "dial_back_request":
                raise ProtocolViolation("dial_back_request expected")
            ports = tuple(dict.fromkeys(message.dial_back_request.ports))
            if not 1 <= len(ports) <= MAX_PORTS or not all(1 <= port <= 65535 for port in ports):
                raise ProtocolViolation(f"dial_back_request takes 1 to {MAX_PORTS} TCP ports")
            address = stream.remote_address
            if not address:
                raise InvalidRequest("a relayed connection has no address to be dialled back")
            reasons = [await _dial(address, port) for port in ports]
            results = [
                pb.DialBackResult(port=port, reachable=not reason, reason=reason)
                for port, reason in zip(ports, reasons, strict=True)
            ]
            reply = pb.DialBackReply(observed_address=address, results=results)
            await stream.write_frame(envelope.encode(dial_back_reply=reply))
    except Rejected as error:
        await stream.write_frame(envelope.encode_error(error))


async def ask_peers(host: Libp2pHost, peers: Iterable[PeerId]) -> Reachability:
    """Ask a few connected peers; those that do not know the protocol are passed over."""
    ports = _ports(host.addresses)
    answers: list[Answer] = []
    for peer_id in peers:
        if len(answers) == PEERS_ASKED or not ports:
            break
        try:
            answers.append(await _ask(host, peer_id, ports))
        except NodeError as error:
            _log.info("not asked for a dial-back", peer_id=peer_id, error=error.message)
    return judge(answers, host.addresses)


def judge(answers: Sequence[Answer], addresses: Sequence[str]) -> Reachability:
    """One sentence for the operator."""
    if not answers:
        return Reachability("not known: no connected peer could dial back")
    port = _ports(addresses)[0]
    reached = [answer for answer in answers if answer.reachable]
    seen_as = answers[0].observed_address
    announced = {ip for address in addresses if (ip := _ip(address))}
    public = {ip for address in addresses if is_public(address) and (ip := _ip(address))}
    if not reached:
        reason = dict(answers[0].reasons).get(port, "no answer")
        return Reachability(
            f"{len(answers)} peers cannot reach {seen_as} port {port} ({reason}): open TCP port"
            f" {port} in the firewall and forward it to this machine in the router",
            is_reachable=False,
        )
    if seen_as not in announced and not public:
        return Reachability(
            f"peers see this machine as {seen_as} but it announces private addresses only: set"
            f' p2p.announce = ["/ip4/{seen_as}/tcp/{port}"]',
            is_reachable=False,
        )
    if public and seen_as not in public and not any(a.observed_address in public for a in answers):
        return Reachability(
            f"reachable at {seen_as} port {port}, but {', '.join(sorted(public))} is announced:"
            " check p2p.announce",
            is_reachable=True,
        )
    found = f"{len(reached)} of {len(answers)} peers reach {seen_as} port {port}"
    return Reachability(found, is_reachable=True)


async def _ask(host: Libp2pHost, peer_id: PeerId, ports: tuple[int, ...]) -> Answer:
    stream = await host.open_stream(peer_id, [REACH_PROTOCOL])
    try:
        question = pb.DialBackRequest(ports=ports[:MAX_PORTS])
        await stream.write_frame(envelope.encode(dial_back_request=question))
        frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, ANSWER_SECONDS)
    finally:
        await stream.reset()
    if frame is None:
        raise ProtocolViolation("peer ended the stream without an answer")
    message = envelope.decode(frame)
    if message.WhichOneof("body") == "error":
        raise envelope.error_of(message.error)
    reply = message.dial_back_reply
    asked = [result for result in reply.results if result.port in ports]
    return Answer(
        peer_id,
        reply.observed_address[:64],
        frozenset(result.port for result in asked if result.reachable),
        tuple((result.port, result.reason[:100]) for result in asked),
    )


async def _dial(address: str, port: int) -> str:
    """Why no libp2p node answers there; "" when one does."""
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(GREETING)
                greeting = await reader.readexactly(len(GREETING))
            finally:
                writer.close()
    except TimeoutError:
        return "timed out"
    except (OSError, asyncio.IncompleteReadError) as error:
        refused = isinstance(error, ConnectionRefusedError)
        return "connection refused" if refused else "no libp2p node answers"
    return "" if greeting == GREETING else "no libp2p node answers"


def _ports(addresses: Sequence[str]) -> tuple[int, ...]:
    ports = [end[1] for address in addresses if (end := tcp_endpoint(address)) is not None]
    return tuple(dict.fromkeys(ports))


def _ip(address: str) -> str:
    end = tcp_endpoint(address)
    return end[0] if end is not None else ""
