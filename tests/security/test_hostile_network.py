"""The real p2p process on loopback between strangers who misbehave and a renter who pays.

The short form of `make campaign-p2p`: idle sockets, garbage, endless varints, forged records.
"""

import asyncio
import threading
import time
from contextlib import AsyncExitStack

import pytest

from nodeapp.core.ids import PeerId
from nodeapp.network.host import Libp2pHost
from tests.benchmarks import p2p_strangers as strangers
from tests.benchmarks.p2p import Node, running_node
from tests.benchmarks.p2p_backend import host_wallet
from tests.benchmarks.p2p_forger import forger
from tests.benchmarks.p2p_market import Listed
from tests.benchmarks.p2p_renters import network, open_session

ANSWERS = 4
HONEST_SECONDS = 10.0


class At(threading.Thread):
    """A stranger at work; what it says is kept."""

    def __init__(self, work, *arguments, **more):
        super().__init__(daemon=True)
        self.said = []
        self._work = lambda: work(self, *arguments, **more)

    def send(self, facts):
        self.said.append(facts)

    def run(self):
        self._work()

    def result(self):
        self.join(30)
        assert self.said, "a stranger did not come to its end"
        return self.said[0]


@pytest.fixture(scope="module")
def node():
    with running_node(renters=ANSWERS, rate=400.0) as running:
        yield running


async def honest_answers(node: Node) -> list[float]:
    """Each on a connection of its own, one after the other."""
    times = []
    for number in range(1, ANSWERS + 1):
        begun = time.monotonic()
        async with asyncio.timeout(HONEST_SECONDS), AsyncExitStack() as stack:
            settings = network(node.directory, f"honest{number}")
            running = Libp2pHost.running(settings, on_death=pytest.fail)
            host = await stack.enter_async_context(running)
            session = await open_session(stack, host, node.address, number)
            await session.ask(20)
        times.append(time.monotonic() - begun)
    return times


def test_a_renter_is_served_while_strangers_hold_sockets_and_send_garbage(node):
    port = int(node.address.split("/")[4])
    idle = At(strangers.idle_sockets, "127.0.0.1", 120, 8.0, port=port)
    garbage = At(strangers.garbage, "127.0.0.1", 14.0, 7, port=port)
    rude = At(strangers.rude_streams, node.address)
    for stranger in (idle, garbage, rude):
        stranger.start()
    assert len(asyncio.run(honest_answers(node))) == ANSWERS
    assert idle.result()["closed"] >= 120
    assert {name for name, seconds in garbage.result().items() if seconds < 0} == set()
    said = rude.result()
    assert sum(said.values()) == 12
    assert set(said) <= {
        "error protocol_violation",
        "error invalid_request",
        "stream reset",
        "stream closed",
    }


def test_forged_and_expired_records_are_neither_kept_nor_passed_on(node):
    peer_id = PeerId(node.address.rpartition("/")[2])
    victim = Listed(host_wallet().address, peer_id, node.address)
    liar = At(forger, "127.0.0.1", node.address, victim, 0.0)
    liar.start()
    facts = liar.result()
    assert facts["taken"].pop("control: true") == 1
    assert set(facts["taken"].values()) == {0}
    assert facts["heard"] == 0
