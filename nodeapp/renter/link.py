"""One authenticated stream to a host: handshake, session, typed messages both ways."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nodeapp import __version__
from nodeapp.core.errors import ProtocolViolation, Unauthorised, Unavailable
from nodeapp.core.ids import JobId
from nodeapp.evm.accounts import Wallet
from nodeapp.network.host import Libp2pHost
from nodeapp.network.streams import Stream
from nodeapp.renter.record import SessionHead
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.signed import domain_separator, login_digest

AGENT = f"fabstir-renter/{__version__}"
READ_SECONDS = 30.0
"""A host that is alive answers pings, so silence for this long means it is gone."""
PING_SECONDS = 8.0


class Link:
    """Open with `async with open_link(...) as link`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def send(self, **body: object) -> None:
        """Send one message, named by its keyword."""
        await self._stream.write_frame(envelope.encode(**body))

    async def receive(self) -> pb.Envelope:
        """The next message that is not a pong.

        Raises:
            NodeError: the error the host sent.
            Unavailable: the host is gone.
        """
        while True:
            frame = await self._stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, READ_SECONDS)
            if frame is None:
                raise Unavailable("host ended the stream")
            message = envelope.decode(frame)
            match message.WhichOneof("body"):
                case "pong":
                    continue
                case "error":
                    raise envelope.error_of(message.error)
                case _:
                    return message

    async def expect(self, body: str) -> pb.Envelope:
        """The next message, which must be of this kind.

        Raises:
            ProtocolViolation: it is another.
        """
        message = await self.receive()
        if message.WhichOneof("body") != body:
            raise ProtocolViolation(f"{body} expected, not {message.WhichOneof('body')}")
        return message

    async def confirm(self) -> None:
        """Until the host has acted on everything sent: it answers in order.

        Raises:
            NodeError: an error the host sent.
            Unavailable: the host is gone.
        """
        nonce = secrets.randbits(64)
        await self.send(ping=pb.Ping(nonce=nonce))
        try:
            # For all of it: a host that keeps sending must not hold a finished answer open.
            async with asyncio.timeout(READ_SECONDS):
                await self._until_pong(nonce)
        except TimeoutError as error:
            raise Unavailable(f"host confirms nothing inside {READ_SECONDS:g} s") from error

    async def _until_pong(self, nonce: int) -> None:
        while True:
            frame = await self._stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, READ_SECONDS)
            if frame is None:
                raise Unavailable("host ended the stream")
            message = envelope.decode(frame)
            match message.WhichOneof("body"):
                case "error":
                    raise envelope.error_of(message.error)
                case "pong" if message.pong.nonce == nonce:
                    return
                case _:
                    continue

    async def login(self, head: SessionHead, wallet: Wallet, own_peer_id: str) -> None:
        """Prove the wallet to the host, bound to both peers.

        Raises:
            Unauthorised: the host speaks for another chain, marketplace or wallet.
        """
        version = envelope.PROTOCOL_VERSION
        hello = pb.Hello(
            min_version=version, max_version=version, agent=AGENT, chain_id=head.chain_id
        )
        await self.send(hello=hello)
        welcome = (await self.expect("welcome")).welcome
        said = (welcome.chain_id, welcome.marketplace, welcome.host)
        if said != (head.chain_id, head.marketplace, head.host):
            raise Unauthorised(f"host speaks for {said}")
        separator = domain_separator(head.chain_id, head.marketplace)
        digest = login_digest(separator, own_peer_id, head.peer_id, welcome.challenge)
        await self.send(login=pb.Login(renter=wallet.address, signature=wallet.sign_digest(digest)))
        await self.expect("login_accepted")

    async def open_session(self, job_id: JobId) -> pb.SessionState:
        """Name the paid session to be used.

        Raises:
            PaymentRequired: the host does not accept it.
        """
        await self.send(open=pb.Open(job_id=job_id))
        return (await self.expect("session_state")).session_state

    async def keep_alive(self) -> None:
        """Ping until cancelled: shows the host that we are there while it computes."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            await self.send(ping=pb.Ping(nonce=secrets.randbits(32)))

    async def end(self) -> None:
        """Drop the stream; the host sees it at once."""
        await self._stream.reset()


@asynccontextmanager
async def open_link(
    host: Libp2pHost, head: SessionHead, wallet: Wallet
) -> AsyncIterator[tuple[Link, pb.SessionState]]:
    """Connect, log in and open the session.

    Raises:
        Unavailable: the host cannot be reached.
        Rejected: it refuses us.
    """
    await connect_to(host, head)
    link = Link(await host.open_stream(head.peer_id, [envelope.INFERENCE_PROTOCOL]))
    try:
        await link.login(head, wallet, host.peer_id)
        yield link, await link.open_session(head.job_id)
    finally:
        await link.end()


async def connect_to(host: Libp2pHost, head: SessionHead) -> None:
    """Reach the host of a session at one of the addresses it was met at.

    Raises:
        Unavailable: none of them answers.
    """
    failure = Unavailable("host has no address")
    for address in head.addresses:
        try:
            await host.connect(address)
        except Unavailable as error:
            failure = error
        else:
            return
    raise failure
