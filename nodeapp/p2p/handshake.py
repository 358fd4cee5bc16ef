"""Hello, Welcome, Login: who the renter is, and on which chain it pays."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nodeapp import __version__
from nodeapp.core.errors import ProtocolViolation, Unauthorised, Unavailable
from nodeapp.core.ids import Address
from nodeapp.network.streams import Stream
from nodeapp.p2p.offer import Offer
from nodeapp.security.wallet import address_of, recover_public_key
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.signed import domain_separator, login_digest

HANDSHAKE_SECONDS = 15.0
AGENT = f"fabstir-node/{__version__}"


@dataclass(frozen=True, slots=True)
class Renter:
    """Who is on the other side."""

    address: Address
    public_key: bytes


async def shake_hands(
    stream: Stream,
    go_to_chain: Callable[[int], Awaitable[Offer]],
    check_wallet: Callable[[Address], None],
) -> Renter:
    """Let the renter prove its wallet, bound to this stream's two peers and a fresh challenge.

    Args:
        stream: nothing was read of it yet.
        go_to_chain: the offer on the chain of this id, 0: the first; raises where nothing is sold.
        check_wallet: raises for a wallet that is kept out.

    Raises:
        ProtocolViolation: another version, or another message than the one that is due.
        Unauthorised: the login is not signed by the renter it names.
        Unavailable: the renter left or said nothing.
    """
    hello = (await _expect(stream, "hello")).hello
    if not hello.min_version <= envelope.PROTOCOL_VERSION <= hello.max_version:
        raise ProtocolViolation(
            f"this host speaks version {envelope.PROTOCOL_VERSION}, not"
            f" {hello.min_version} to {hello.max_version}"
        )
    offer = await go_to_chain(hello.chain_id)
    challenge = secrets.token_bytes(32)
    host = offer.host
    welcome = pb.Welcome(
        version=envelope.PROTOCOL_VERSION,
        agent=AGENT,
        challenge=challenge,
        chain_id=host.chain_id,
        marketplace=host.marketplace,
        host=host.address,
    )
    await stream.write_frame(envelope.encode(welcome=welcome))
    login = (await _expect(stream, "login")).login
    digest = login_digest(
        domain_separator(host.chain_id, host.marketplace),
        stream.remote_peer_id,
        offer.record.peer_id,
        challenge,
    )
    key = recover_public_key(digest, login.signature)
    if address_of(key) != login.renter:
        raise Unauthorised("login is not signed by the renter it names")
    check_wallet(Address(login.renter))
    await stream.write_frame(envelope.encode(login_accepted=pb.LoginAccepted()))
    return Renter(Address(login.renter), key)


async def _expect(stream: Stream, body: str) -> pb.Envelope:
    frame = await stream.read_frame(envelope.MAX_STREAM_FRAME_BYTES, HANDSHAKE_SECONDS)
    if frame is None:
        raise Unavailable("renter left during the handshake")
    message = envelope.decode(frame)
    if message.WhichOneof("body") != body:
        raise ProtocolViolation(f"{body} expected, not {message.WhichOneof('body')}")
    return message
