"""Calls that pile up go out as one, and nobody's is lost or answered twice."""

import asyncio
from itertools import chain

import pytest

from nodeapp.core.errors import Busy, Unavailable
from nodeapp.rpc.together import Together


class Server:
    def __init__(self):
        self.calls = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, items):
        self.calls.append(list(items))
        await self.gate.wait()
        return [Busy(f"{item} refused") if item < 0 else None for item in items]


@pytest.fixture
def server():
    return Server()


def together(server, max_items=4):
    return Together(server.send, key=lambda item: abs(item) % 10, max_items=max_items)


async def test_what_comes_during_a_call_goes_out_as_one(server):
    server.gate.clear()
    calls = together(server)
    async with asyncio.TaskGroup() as tasks:
        for item in (1, 2, 3, 4):
            tasks.create_task(calls.add(item))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        server.gate.set()
    assert server.calls[0] == [1, 2, 3, 4][: len(server.calls[0])]
    assert sorted(chain.from_iterable(server.calls)) == [1, 2, 3, 4]
    assert len(server.calls) <= 2


async def test_a_refused_item_fails_alone(server):
    calls = together(server)
    results = {}

    async def add(item):
        try:
            await calls.add(item)
            results[item] = "done"
        except Busy as error:
            results[item] = error.message

    async with asyncio.TaskGroup() as tasks:
        for item in (1, -2, 3):
            tasks.create_task(add(item))
    assert results == {1: "done", -2: "-2 refused", 3: "done"}


async def test_two_items_of_one_key_never_share_a_call(server):
    calls = together(server)
    async with asyncio.TaskGroup() as tasks:
        for item in (1, 11, 21, 2):
            tasks.create_task(calls.add(item))
    for call in server.calls:
        assert len({item % 10 for item in call}) == len(call)
    assert sorted(chain.from_iterable(server.calls)) == [1, 2, 11, 21]


async def test_a_cancelled_sender_leaves_the_others_to_the_next(server):
    server.gate.clear()
    calls = together(server)
    first = asyncio.ensure_future(calls.add(1))
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(calls.add(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    first.cancel()
    server.gate.set()
    for other in others:
        await asyncio.wait_for(other, 5)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert {2, 3} <= set(chain.from_iterable(server.calls))


async def test_a_call_that_cannot_be_made_fails_everybody_in_it(server):
    async def broken(_items):
        raise Unavailable("chain is not reachable")

    calls = Together(broken, key=lambda item: item, max_items=8)
    results = await asyncio.gather(*(calls.add(n) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3


async def test_no_call_is_larger_than_allowed(server):
    calls = together(server, max_items=2)
    async with asyncio.TaskGroup() as tasks:
        for item in range(1, 8):
            tasks.create_task(calls.add(item))
    assert max(map(len, server.calls)) <= 2
    assert sorted(chain.from_iterable(server.calls)) == list(range(1, 8))
