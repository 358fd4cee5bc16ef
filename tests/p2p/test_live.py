"""Who holds a session, and who must leave when the host stops."""

import asyncio

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.p2p.live import LiveConversations


class Talk:
    """A conversation that lives until it is told to end."""

    def __init__(self, live: LiveConversations, *, is_busy: bool = False) -> None:
        self.live = live
        self.is_busy = is_busy
        self.told = asyncio.Event()
        self.went: list[str] = []

    def let_go(self) -> None:
        self.went.append("let go")
        if not self.is_busy:
            self.told.set()

    def hang_up(self) -> None:
        self.went.append("hung up")
        self.told.set()

    async def run(self) -> None:
        with self.live.line(self):
            await self.told.wait()
            self.went.append("ended")


@pytest.fixture
def live() -> LiveConversations:
    return LiveConversations()


async def test_the_newest_conversation_of_a_session_wins(live):
    old, new = Talk(live), Talk(live)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(old.run())
        tasks.create_task(new.run())
        await asyncio.sleep(0)
        assert not await live.take(1, old)
        assert await live.take(1, new)
        assert old.went == ["hung up", "ended"]
        assert len(live) == 1
        assert not await live.take(1, new)
        new.hang_up()
    assert len(live) == 0


async def test_other_sessions_are_left_alone(live):
    one, two = Talk(live), Talk(live)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run())
        tasks.create_task(two.run())
        await asyncio.sleep(0)
        assert not await live.take(1, one)
        assert not await live.take(2, two)
        one.hang_up()
        two.hang_up()


async def test_a_session_is_free_when_its_conversation_ended(live):
    one, two = Talk(live), Talk(live)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run())
        await asyncio.sleep(0)
        await live.take(1, one)
        one.hang_up()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(two.run())
        await asyncio.sleep(0)
        assert not await live.take(1, two)
        two.hang_up()


async def test_a_stop_waits_for_answers_and_not_for_the_silent(live):
    silent, busy = Talk(live), Talk(live, is_busy=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(silent.run())
        tasks.create_task(busy.run())
        await asyncio.sleep(0)
        drain = tasks.create_task(live.drain())
        while silent.went != ["let go", "ended"]:
            await asyncio.sleep(0)
        assert not drain.done()
        busy.told.set()
        async with asyncio.timeout(5):
            await drain


async def test_nobody_is_let_in_while_stopping(live):
    await live.drain()
    with pytest.raises(Unavailable, match="host is stopping"), live.line(Talk(live)):
        pass


async def test_after_a_drain_that_nothing_followed_conversations_are_taken_again(live):
    async with asyncio.timeout(5):
        await live.drain()
    with pytest.raises(Unavailable, match="stopping"), live.line(Talk(live)):
        pass
    live.resume()
    with live.line(Talk(live)):
        assert len(live) == 1


async def test_whoever_waits_for_a_drain_may_give_up_and_new_ones_stay_out(live):
    busy = Talk(live, is_busy=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(busy.run())
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await live.drain()
        with pytest.raises(Unavailable), live.line(Talk(live)):
            pass
        busy.hang_up()
    assert busy.went == ["let go", "hung up", "ended"]
