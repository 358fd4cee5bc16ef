"""A watcher that was away for long reads the chain in parts and loses nothing when interrupted."""

import pytest

from nodeapp.chain import watcher as module
from nodeapp.chain.watcher import Watcher
from nodeapp.core.errors import Unavailable
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.provider import Block
from tests.fakes.paid_session import CHAIN_ID, HOST, MARKET, open_ledger


class Provider:
    head = 95

    async def block(self, number="latest"):
        number = self.head if number == "latest" else number
        return Block(
            BlockNumber(number), f"0x{number}", f"0x{number - 1}", BlockTime(1_000 + number), Wei(0)
        )


class Contracts:
    def __init__(self, first_block):
        self.provider = Provider()
        self.deployment = Deployment(CHAIN_ID, *[MARKET] * 7, first_block=first_block)

    async def is_paused(self, block):
        return False


class Events:
    def __init__(self):
        self.asked, self.fails_at = [], None

    async def get_session_events(self, first, last, _host, _jobs):
        if self.fails_at is not None and last >= self.fails_at:
            raise Unavailable("no rpc endpoint answered")
        self.asked.append((first, last))
        return ()


@pytest.fixture
async def ledger(tmp_path):
    ledger = await open_ledger(tmp_path)
    yield ledger
    await ledger.close()


def watching(ledger, events, first_block=0):
    watcher = Watcher(ledger, Contracts(first_block), HOST, confirmations=1, window_blocks=10)
    watcher._events = events
    return watcher


async def test_an_interrupted_catching_up_goes_on_where_it_was(ledger, monkeypatch):
    monkeypatch.setattr(module, "BLOCKS_AT_ONCE", 30)
    events = Events()
    events.fails_at = 60
    watcher = watching(ledger, events)
    with pytest.raises(Unavailable):
        await watcher.step()
    assert (ledger.cursor.block_number, ledger.cursor.block_hash) == (59, "0x59")
    assert watcher.now is None, "nothing may be claimed before all events are known"
    events.fails_at = None
    assert await watching(ledger, events).step()
    # Each part begins a window earlier than the one before it ended; nothing final is read again.
    assert events.asked == [(0, 29), (20, 59), (50, 85), (76, 95)]
    assert ledger.cursor.block_hash == "0x95"
    assert [point.block_number for point in ledger.view.points] == [85, 95]


async def test_a_new_host_reads_from_the_block_of_the_deployment(ledger):
    events = Events()
    assert await watching(ledger, events, first_block=80).step()
    assert events.asked == [(80, 85), (80, 95)]


async def test_a_deployment_later_than_the_head_is_waited_for(ledger):
    events = Events()
    await watching(ledger, events, first_block=96).step()
    assert events.asked == []
    assert ledger.cursor is None
