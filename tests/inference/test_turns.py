"""Who has the one child next, and who is sent away."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import Busy
from nodeapp.inference.turns import MAX_WAITING, MAX_WAITING_OF_ONE, Turns


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Table:
    """Askers that hold the turn until they are let go."""

    def __init__(self, turns):
        self.turns = turns
        self.served = []
        self.at_once = 0
        self.go_on = asyncio.Semaphore(0)

    async def ask(self, asker):
        async with self.turns.turn(asker):
            self.at_once += 1
            assert self.at_once == 1
            self.served.append(asker)
            try:
                await self.go_on.acquire()
            finally:
                self.at_once -= 1


async def test_askers_are_served_in_a_round_however_many_one_of_them_sends():
    table = Table(Turns("work"))
    async with asyncio.TaskGroup() as tasks:
        for asker in ("loud", "loud", "loud", "loud", "quiet", "other"):
            tasks.create_task(table.ask(asker))
            await settle()
        for _ in range(6):
            table.go_on.release()
    assert table.served == ["loud", "loud", "quiet", "other", "loud", "loud"]


async def test_one_asker_cannot_fill_the_queue():
    table = Table(Turns("work"))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(1 + MAX_WAITING_OF_ONE):
            tasks.create_task(table.ask("loud"))
        await settle()
        with pytest.raises(Busy, match=f"{MAX_WAITING_OF_ONE} of them from here"):
            await table.ask("loud")
        quiet = tasks.create_task(table.ask("quiet"))
        for _ in range(2 + MAX_WAITING_OF_ONE):
            table.go_on.release()
    assert quiet.done()


async def test_all_together_cannot_either():
    table = Table(Turns("work"))
    async with asyncio.TaskGroup() as tasks:
        for number in range(1 + MAX_WAITING):
            tasks.create_task(table.ask(str(number)))
        await settle()
        assert table.served == ["0"]
        with pytest.raises(Busy, match=f"{MAX_WAITING} wait"):
            await table.ask("late")
        for _ in range(1 + MAX_WAITING):
            table.go_on.release()


async def test_waiting_ends_in_time_and_leaves_the_queue_whole():
    table = Table(Turns("work", wait_seconds=0.05))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(table.ask("first"))
        await settle()
        with pytest.raises(Busy, match=r"no turn inside 0\.05 s"):
            await table.ask("second")
        table.go_on.release()
        await settle()
        table.go_on.release()
        await table.ask("third")
    assert table.served == ["first", "third"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["stay", "leave"])), max_size=12))
def test_whoever_leaves_takes_no_turn_along(askers):
    async def play():
        table = Table(Turns("work"))
        tasks = []
        for asker, _ in askers:
            tasks.append(asyncio.ensure_future(table.ask(asker)))
            await settle()
        for task, (_, what) in zip(tasks, askers, strict=True):
            if what == "leave":
                table.go_on.release()  # the turn may just be coming
                task.cancel()
        for _ in askers:
            table.go_on.release()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done)
        table.go_on.release()
        async with asyncio.timeout(5):
            await table.ask("after")

    asyncio.run(play())
