"""A renter that comes back before its dead stream is noticed, and a host that stops meanwhile."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.evm.accounts import load_keystore
from nodeapp.network.host import Libp2pHost
from nodeapp.network.settings import DhtMode, NetworkSettings
from nodeapp.renter.events import AnswerEnded, SessionPaid
from nodeapp.renter.link import open_link
from nodeapp.renter.settings import load_renter_settings
from nodeapp.wire import fabstir_pb2 as pb
from tests.world import STORY, RenterHome, World, until

ASKED = "5e" * 16
pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def links_of(home: RenterHome, job_id: int):
    """Opens streams of one renter by hand."""
    settings = load_renter_settings(home.config)
    wallet = load_keystore(Path(settings.keystore_file), Path(settings.password_file))
    network = NetworkSettings(
        identity_path=home.state / "identity.key", listen=(), dht_mode=DhtMode.CLIENT
    )
    async with Libp2pHost.running(network, on_death=lambda _reason: None) as host:
        yield lambda: open_link(host, home.record(job_id).head, wallet)


async def last_of(link) -> None:
    async with asyncio.timeout(10):  # sooner than any deadline of the host
        while True:
            await link.receive()


def generate(model_id: str, request_id: str) -> pb.Generate:
    messages = [pb.Message(role="user", content=STORY)]
    return pb.Generate(request_id=request_id, model_id=model_id, messages=messages, max_tokens=200)


@pytest.fixture
def kept(world: World, request) -> tuple[RenterHome, int]:
    """A renter with an open session."""
    home = world.renter(request.node.name[:30])
    chat = home.chat("Hello", "--max-tokens", 5, "--keep")
    assert chat.finish() == 0, chat.err
    return home, chat.one(SessionPaid).job_id


async def test_the_newer_stream_of_a_session_takes_the_answer_over(kept):
    home, job_id = kept
    model_id = home.record(job_id).head.model_id
    async with asyncio.timeout(60), links_of(home, job_id) as opened:  # noqa: SIM117  # reads better
        async with opened() as (old, before):
            await old.send(generate=generate(model_id, ASKED))
            await old.expect("started")
            first = (await old.expect("tokens")).tokens
            # The window is never acknowledged: the old stream hangs, as a lost one would.
            async with opened() as (new, state):
                assert state.acknowledged == before.acknowledged
                assert state.open_request == ASKED
                with pytest.raises(Unavailable):
                    await last_of(old)
                await new.send(generate=generate(model_id, ASKED))
                started = (await new.expect("started")).started
                assert started.first_token == started.next_token == first.first_token
                again = (await new.expect("tokens")).tokens
                assert again.ids[0] == first.ids[0]
                assert again.first_token == first.first_token


async def test_a_cancel_ends_the_answer_and_frees_the_engine(world: World, kept):
    home, job_id = kept
    model_id = home.record(job_id).head.model_id
    async with asyncio.timeout(60), links_of(home, job_id) as opened, opened() as (link, _state):
        await link.send(generate=generate(model_id, ASKED))
        await link.expect("started")
        await link.expect("tokens")
        await link.send(cancel=pb.Cancel(request_id=ASKED))
        while (message := await link.receive()).WhichOneof("body") != "end":
            assert message.WhichOneof("body") == "tokens"
        assert message.end.finish_reason == "cancelled"
        assert 0 < message.end.completion_tokens < 200
        await asyncio.to_thread(until, lambda: processing(world) == 0, "sequence freed", 10)


def processing(world: World) -> float:
    return world.metric("inference", "fabstir_inference_requests_processing")


async def test_a_silent_renter_does_not_hold_up_a_stop(world: World, kept):
    home, job_id = kept
    async with asyncio.timeout(60), links_of(home, job_id) as opened, opened() as (link, _state):
        pid = await asyncio.to_thread(world.pid, "p2p")
        begun = time.monotonic()
        await asyncio.to_thread(terminate, pid)
        with pytest.raises(Unavailable):
            await link.receive()
        assert time.monotonic() - begun < 5
    await asyncio.to_thread(until, lambda: world.status()["p2p"].ready, "p2p is back", 40)


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
def test_a_chat_goes_on_when_p2p_is_stopped_in_order(world: World):
    home = world.renter("stopped-in-order")
    chat = home.chat(STORY, "--max-tokens", 120)
    chat.until_tokens(20)
    terminate(world.pid("p2p"))
    assert chat.finish(90) == 0, chat.err
    ended = chat.one(AnswerEnded)
    assert ended.tokens == 120
    assert world.until_settled(ended.job_id).tokens_used == 120
