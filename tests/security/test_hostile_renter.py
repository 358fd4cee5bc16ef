"""One stream's conversation against a renter that misbehaves; no network, no other process."""

import pytest

from nodeapp.core.errors import PaymentRequired
from nodeapp.evm.accounts import new_wallet
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.bans import Bans
from nodeapp.p2p.beat import Beat
from nodeapp.p2p.conversation import MAX_REFUSALS, Conversation, ConversationMetrics, Services
from nodeapp.p2p.live import LiveConversations
from nodeapp.p2p.relay import RelaySettings
from nodeapp.service.metrics import Metrics
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.signed import domain_separator, login_digest
from tests.fakes.clock import FakeClock

CHAIN, MARKETPLACE, HOST = 31337, "0x" + "11" * 20, "0x" + "22" * 20


class Record:
    peer_id = "host-peer"
    models = ()


class View:
    chain_id, marketplace, address = CHAIN, MARKETPLACE, HOST


class Offer:
    record, host = Record, View


class Chain:
    """Knows no session."""

    def __init__(self) -> None:
        self.opened = 0

    async def open_session(self, _request) -> None:
        self.opened += 1
        raise PaymentRequired("session is not confirmed, or not with this host")


class ScriptedStream:
    """The renter's frames are made from what the host says."""

    remote_peer_id = "renter-peer"
    remote_address = "8.8.8.8"
    is_over = False

    def __init__(self, wallet, frames: list[bytes], renter: str = "") -> None:
        self._wallet, self._frames, self._renter = wallet, frames, renter or wallet.address
        self._step = 0
        self.said: list[pb.Envelope] = []

    async def read_frame(self, _max_bytes, _deadline) -> bytes | None:
        self._step += 1
        if self._step == 1:
            return envelope.encode(hello=pb.Hello(min_version=1, max_version=1))
        if self._step == 2:
            digest = login_digest(
                domain_separator(CHAIN, MARKETPLACE),
                self.remote_peer_id,
                Record.peer_id,
                self.said[0].welcome.challenge,
            )
            signature = self._wallet.sign_digest(digest)
            return envelope.encode(login=pb.Login(renter=self._renter, signature=signature))
        return self._frames.pop(0) if self._frames else None

    async def write_frame(self, frame: bytes) -> None:
        self.said.append(envelope.decode(frame))

    async def close(self) -> None:
        self.is_over = True

    async def reset(self) -> None:
        self.is_over = True

    def errors(self) -> list[pb.Error]:
        return [said.error for said in self.said if said.WhichOneof("body") == "error"]


@pytest.fixture
def services(tmp_path):
    admission = Admission(handshakes_per_minute=60, max_streams_per_peer=4)
    relay = RelaySettings(64, Beat(0.03), 5.0)
    metrics = Metrics("hostile")
    bans = Bans(tmp_path / "bans.json", FakeClock(), metrics)
    counters = ConversationMetrics(metrics)
    return Services(Chain(), None, admission, relay, 10.0, counters, LiveConversations(), bans)


async def test_a_login_signed_by_another_key_is_refused(services):
    stream = ScriptedStream(new_wallet(), [], renter=new_wallet().address)
    await Conversation(stream, services, Offer).run()
    assert [error.code for error in stream.errors()] == ["unauthorised"]


async def test_a_stream_ends_after_so_many_refused_messages(services):
    frames = [envelope.encode(open=pb.Open(job_id=9))] * (MAX_REFUSALS + 50)
    stream = ScriptedStream(new_wallet(), frames)
    await Conversation(stream, services, Offer).run()
    assert services.chain.opened == MAX_REFUSALS + 1
    assert stream.errors()[-1].code == "protocol_violation"
    assert stream.is_over


async def test_nothing_is_served_before_a_session_is_open(services):
    receipt = pb.Receipt(job_id=1, tokens=1, running_hash=bytes(32), signature=bytes(65))
    frames = [
        envelope.encode(generate=pb.Generate(request_id="zz")),
        envelope.encode(receipt=receipt),
        envelope.encode(close=pb.Close(job_id=1)),
    ]
    stream = ScriptedStream(new_wallet(), frames)
    await Conversation(stream, services, Offer).run()
    assert [error.code for error in stream.errors()] == ["invalid_request"] * 3
    assert services.chain.opened == 0


async def test_the_slot_of_a_refused_stream_is_free_again(services):
    for _ in range(10):
        await Conversation(ScriptedStream(new_wallet(), []), services, Offer).run()
    with services.admission.stream(ScriptedStream.remote_peer_id):
        pass


async def test_a_peer_that_breaks_the_protocol_again_and_again_is_kept_out(services):
    for _ in range(3):
        assert services.bans.admits(ScriptedStream.remote_peer_id, "8.8.8.8")
        frames = [envelope.encode(welcome=pb.Welcome(version=1))]
        await Conversation(ScriptedStream(new_wallet(), frames), services, Offer).run()
    assert not services.bans.admits(ScriptedStream.remote_peer_id, "8.8.8.8")


async def test_a_banned_wallet_is_told_so_after_its_login(services):
    wallet = new_wallet()
    services.bans.ban(f"wallet:{wallet.address}", "owes us", 60.0)
    stream = ScriptedStream(wallet, [])
    await Conversation(stream, services, Offer).run()
    (error,) = stream.errors()
    assert error.code == "unauthorised"
    assert "not served here until" in error.message
