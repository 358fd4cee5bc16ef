"""Circuit relay v2 (libp2p specifications, relay/circuit-v2): a way to who cannot be dialled.

The host keeps a reservation with a relay; whoever wants it asks the relay to connect, and what
both then say passes the relay encrypted end to end. py-libp2p 0.8.1's own relay never comes to a
reservation, so these are the two protocols over its streams: the relay's side on asyncio, the
two ends on the trio thread, where a stream becomes a connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
import trio

from nodeapp.core.errors import NodeError, ProtocolViolation, Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.core.peer_score import subnet_of
from nodeapp.network.streams import Stream
from nodeapp.wire.framing import encode_frame

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MARK: Final = "/p2p-circuit"
MAX_MESSAGE_BYTES: Final = 4096
MESSAGE_SECONDS: Final = 15.0
RESET_SECONDS: Final = 1.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives; both ends are told.

    Attributes:
        reservations: peers that may be reached through it at a time.
        reservation_seconds: after which a peer asks again, or is forgotten.
        circuits: at a time, all together.
        circuits_per_peer: to one peer, and of one asker.
        circuits_per_subnet: of the askers of one subnet (/24, /48); private ones are exempt.
        circuit_seconds: of one connection.
        circuit_bytes: of one connection, each way.
    """

    reservations: int = 128
    reservation_seconds: float = 3600.0
    circuits: int = 64
    circuits_per_peer: int = 8
    circuits_per_subnet: int = 16
    circuit_seconds: float = 7200.0
    circuit_bytes: int = 64 << 20


class RelayHost(Protocol):
    """What the relay uses of its libp2p host."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its own, with /p2p/."""
        ...

    def connected_peers(self) -> frozenset[PeerId]:
        """Who is connected now."""
        ...

    async def open_stream(
        self, peer_id: PeerId, protocol_ids: Sequence[str], deadline_seconds: float = ...
    ) -> Stream:
        """To a connected peer."""
        ...


class Relay:
    """Serves HOP: `host.set_handler(HOP, relay.serve)`."""

    def __init__(
        self, host: RelayHost, now: Callable[[], float], limits: RelayLimits | None = None
    ) -> None:
        """`now`: Unix seconds."""
        self._host = host
        self._now = now
        self._limits = limits or RelayLimits()
        self._reserved: dict[PeerId, float] = {}
        self._circuits: Counter[PeerId] = Counter()
        self._subnets: Counter[str] = Counter()

    @property
    def reserved(self) -> frozenset[PeerId]:
        """Who may be reached through this relay now."""
        now = self._now()
        return frozenset(peer for peer, until in self._reserved.items() if until > now)

    async def serve(self, stream: Stream) -> None:
        """One question; a granted connection lives as long as this runs."""
        from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

        asked = _parsed(pb.HopMessage, await _message(stream))
        if asked.type == pb.HopMessage.RESERVE:
            await stream.write_frame(self._reserve(stream.remote_peer_id).SerializeToString())
            await stream.close()
        elif asked.type == pb.HopMessage.CONNECT:
            await self._connect(stream, asked.peer.id)
        else:
            raise ProtocolViolation("a relay takes RESERVE and CONNECT")

    def _reserve(self, peer_id: PeerId) -> Any:  # noqa: ANN401 - the library's message
        from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

        self._reserved = {peer: self._reserved[peer] for peer in self.reserved}
        if not self._has_place(peer_id):
            # Ids cost nothing: one machine that comes and goes with new ones would take them all.
            connected = self.reserved & self._host.connected_peers()
            self._reserved = {peer: self._reserved[peer] for peer in connected}
        if not self._has_place(peer_id):
            return _status(pb.HopMessage, pb.Status.RESERVATION_REFUSED)
        until = self._now() + self._limits.reservation_seconds
        self._reserved[peer_id] = until
        reply = _status(pb.HopMessage, pb.Status.OK)
        reply.reservation.expire = int(until)
        reply.limit.CopyFrom(self._limit())
        return reply

    def _has_place(self, peer_id: PeerId) -> bool:
        return peer_id in self._reserved or len(self._reserved) < self._limits.reservations

    def _limit(self) -> Any:  # noqa: ANN401 - the library's message
        from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

        limits = self._limits
        return pb.Limit(duration=int(limits.circuit_seconds), data=limits.circuit_bytes)

    async def _connect(self, asking: Stream, target: bytes) -> None:
        from libp2p.peer.id import ID
        from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

        peer_id, source = PeerId(ID(target).to_base58()), asking.remote_peer_id
        subnet = subnet_of(asking.remote_address)
        refusal = self._refusal(source, peer_id, subnet)
        if refusal:
            await asking.write_frame(_status(pb.HopMessage, refusal).SerializeToString())
            await asking.close()
            return
        self._circuits.update((source, peer_id))
        self._subnets[subnet] += 1
        try:
            answering = await self._open(asking, peer_id)
            if answering is not None:
                _log.info("relays", source=source, target=peer_id)
                await self._carry(asking, answering)
        finally:
            self._circuits.subtract((source, peer_id))
            self._circuits = +self._circuits
            self._subnets.subtract((subnet,))
            self._subnets = +self._subnets

    def _refusal(self, source: PeerId, target: PeerId, subnet: str) -> int:
        from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

        if target not in self.reserved:
            return int(pb.Status.NO_RESERVATION)
        most = self._limits.circuits_per_peer
        is_full = self._circuits.total() // 2 >= self._limits.circuits or (
            subnet != "" and self._subnets[subnet] >= self._limits.circuits_per_subnet
        )
        if is_full or self._circuits[source] >= most or self._circuits[target] >= most:
            return int(pb.Status.RESOURCE_LIMIT_EXCEEDED)
        return 0

    async def _open(self, asking: Stream, target: PeerId) -> Stream | None:
        """The stream to the target that has agreed; None: the asker was told why not."""
        from libp2p.peer.id import ID
        from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

        try:
            stream = await self._host.open_stream(target, [STOP])
            asked = pb.StopMessage(type=pb.StopMessage.CONNECT, limit=self._limit())
            asked.peer.id = ID.from_base58(asking.remote_peer_id).to_bytes()
            await stream.write_frame(asked.SerializeToString())
            reply = _parsed(pb.StopMessage, await _message(stream))
        except NodeError as error:
            _log.info("no circuit", target=target, error=error.message)
            failed = _status(pb.HopMessage, pb.Status.CONNECTION_FAILED)
            await asking.write_frame(failed.SerializeToString())
            await asking.close()
            return None
        said = _status(pb.HopMessage, reply.status)
        said.limit.CopyFrom(self._limit())
        await asking.write_frame(said.SerializeToString())
        if reply.status != pb.Status.OK:
            stream.abandon()
            await asking.close()
            return None
        return stream

    async def _carry(self, one: Stream, other: Stream) -> None:
        """Both ways until one end is gone or a limit is reached."""
        try:
            async with asyncio.timeout(self._limits.circuit_seconds), asyncio.TaskGroup() as tasks:
                copies = [
                    tasks.create_task(self._copy(one, other)),
                    tasks.create_task(self._copy(other, one)),
                ]
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
                for copy in copies:
                    copy.cancel()
        except TimeoutError:
            _log.info("circuit over its time", source=one.remote_peer_id)
        finally:
            one.abandon()
            other.abandon()

    async def _copy(self, source: Stream, target: Stream) -> None:
        left = self._limits.circuit_bytes
        try:
            while left > 0 and (some := await source.read_some()):
                left -= len(some)
                await target.write_some(some)
        except NodeError:
            return  # one end is gone, which ends the circuit


class CircuitBytes:
    """A libp2p stream in the place of a TCP connection (py-libp2p's ReadWriteCloser)."""

    def __init__(self, net: Any) -> None:  # noqa: ANN401 - py-libp2p's stream
        """The stream after its relay handshake."""
        self._net = net
        self.closed = trio.Event()

    async def read(self, n: int | None = None) -> bytes:
        """At least one byte; b"" at the end."""
        from libp2p.network.stream.exceptions import StreamError

        try:
            return bytes(await self._net.read(n))
        except StreamError:
            self.closed.set()
            return b""

    async def write(self, data: bytes) -> None:
        """Returns when the relay's connection took all of it."""
        from libp2p.io.exceptions import ConnectionClosedError
        from libp2p.network.stream.exceptions import StreamError

        try:
            await self._net.write(data)
        except StreamError as error:
            self.closed.set()
            raise ConnectionClosedError("circuit ended", transport="circuit") from error

    async def close(self) -> None:
        """Both directions."""
        self.closed.set()
        await self._net.reset()

    def get_remote_address(self) -> None:
        """The other end's address is not known, only the relay's."""
        return


async def reserve(library: Any, relay: Any) -> int:  # noqa: ANN401 - untyped library
    """Ask a connected relay for a reservation; trio side.

    Returns:
        Unix second of its end.
    Raises:
        Unavailable: refused.
    """
    from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

    net = await library.new_stream(relay, [HOP])
    try:
        reply = await _ask(net, pb.HopMessage(type=pb.HopMessage.RESERVE), pb.HopMessage)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + RESET_SECONDS):
            await net.reset()
    _require_ok(reply, "reservation")
    return int(reply.reservation.expire)


async def dial(library: Any, relay: Any, target: Any) -> None:  # noqa: ANN401 - untyped library
    """Connect to a peer through a relay that we are connected to; trio side.

    Raises:
        Unavailable: the relay refuses, or nobody answers there.
    """
    from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

    net = await library.new_stream(relay, [HOP])
    try:
        asked = pb.HopMessage(type=pb.HopMessage.CONNECT)
        asked.peer.id = target.to_bytes()
        _require_ok(await _ask(net, asked, pb.HopMessage), "connection")
        raw, _circuit = _connection(net, is_initiator=True)
        await library.get_network().upgrade_outbound_raw_conn(raw, target)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + RESET_SECONDS):
            await net.reset()
        raise


def acceptor(
    library: Any,  # noqa: ANN401 - untyped library
    relays: Callable[[], frozenset[PeerId]],
) -> Callable[[Any], Awaitable[None]]:
    """Handler of STOP: takes connections through relays of our own choice; trio side."""
    from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
    from multiaddr import Multiaddr

    async def accept(net: Any) -> None:  # noqa: ANN401 - py-libp2p's stream
        relay = PeerId(str(net.muxed_conn.peer_id))
        if relay not in relays():  # before anything is read: strangers hold no stream open
            await net.reset()
            return
        try:
            with trio.fail_after(MESSAGE_SECONDS):
                asked = pb.StopMessage.FromString(await _read(net))
            if asked.type != pb.StopMessage.CONNECT:
                await net.reset()
                return
            agreed = _status(pb.StopMessage, pb.Status.OK)
            await net.write(encode_frame(agreed.SerializeToString()))
            raw, circuit = _connection(net, is_initiator=False)
            await library.get_network().upgrade_inbound_raw_conn(raw, Multiaddr(MARK))
            await circuit.closed.wait()
        except Exception as error:  # noqa: BLE001 - 0.8.1 raises at will; it ends this circuit only
            _log.info("no circuit", relay=relay, error=f"{type(error).__name__}: {error}"[:200])
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RESET_SECONDS):
                await net.reset()

    return accept


def _connection(net: Any, *, is_initiator: bool) -> tuple[Any, CircuitBytes]:  # noqa: ANN401 - untyped library
    from libp2p.connection_types import ConnectionType
    from libp2p.network.connection.raw_connection import RawConnection

    circuit: Any = CircuitBytes(net)
    return RawConnection(circuit, is_initiator, ConnectionType.RELAYED, []), circuit


async def _message(stream: Stream) -> bytes:
    frame = await stream.read_frame(MAX_MESSAGE_BYTES, MESSAGE_SECONDS)
    if frame is None:
        raise Unavailable("the other end left during the relay's handshake")
    return frame


def _parsed(kind: Any, frame: bytes) -> Any:  # noqa: ANN401 - the library's message
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(frame)
    except DecodeError as error:
        raise ProtocolViolation(f"not a {kind.__name__}") from error


async def _ask(net: Any, message: Any, kind: Any) -> Any:  # noqa: ANN401 - untyped library
    with trio.fail_after(MESSAGE_SECONDS):
        await net.write(encode_frame(message.SerializeToString()))
        return _parsed(kind, await _read(net))


async def _read(net: Any) -> bytes:  # noqa: ANN401 - py-libp2p's stream
    """One message and not a byte more: what follows belongs to the connection."""
    length = shift = 0
    while True:
        (byte,) = await net.read(1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
        if shift > 14:
            raise ProtocolViolation("relay message is too long")
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolViolation(f"relay message of {length} bytes, {MAX_MESSAGE_BYTES} allowed")
    body = b""
    while len(body) < length:
        body += await net.read(length - len(body))
    return body


def _status(kind: Any, code: int) -> Any:  # noqa: ANN401 - the library's message
    message = kind(type=kind.STATUS)
    message.status = code
    return message


def _require_ok(reply: Any, what: str) -> None:  # noqa: ANN401 - the library's message
    from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

    if reply.status != pb.Status.OK:
        raise Unavailable(f"relay refuses the {what}: status {reply.status}")
