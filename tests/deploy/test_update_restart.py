"""A restart that does not come: asked for again, by the same updater and by the next one."""

import asyncio
import contextlib

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.core.release import Release
from nodeapp.core.update import Phase, StepDone, UpdateState
from nodeapp.updater.boot_health import BootHealth
from nodeapp.updater.channel import Channel
from nodeapp.updater.sysupdate import SysupdateBackend
from nodeapp.updater.update_flow import NodeVerbs, UpdateFlow
from nodeapp.updater.update_journal import UpdateJournal
from nodeapp.updater.version import boot_id

FIRST_SECONDS = 0.01


class Root:
    """The far end: refuses a few reboots, then says yes to them and stays up all the same."""

    def __init__(self, refusals):
        self.refusals = refusals
        self.asked = []
        self.done = []
        self.heard = asyncio.Condition()
        self.loop = asyncio.get_running_loop()

    def __call__(self, *words):
        self.asked.append(words)
        self.done.append(words[0])
        asyncio.run_coroutine_threadsafe(self._tell(), self.loop).result(5)
        if words == ("reboot",) and self.asked.count(words) <= self.refusals:
            raise Unavailable("update helper: reboot: systemctl ended with 1")

    async def _tell(self):
        async with self.heard:
            self.heard.notify_all()

    async def until(self, count, *words):
        async with asyncio.timeout(10), self.heard:
            await self.heard.wait_for(lambda: self.asked.count(words) >= count)

    def verb(self, name):
        async def act():
            self.done.append(name)

        return act


@contextlib.asynccontextmanager
async def running(flow):
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(flow.run())
        yield
        task.cancel()


def updater(base, root):
    verbs = NodeVerbs(
        root.verb("drain"), root.verb("resume"), root.verb("snapshot"), lambda _path: 1 << 40
    )
    channel = Channel("http://127.0.0.1:1", "stable", base / "root.json", base / "tuf")
    journal = UpdateJournal(base / "update.json")
    backend = SysupdateBackend("0.1.0", root)
    return UpdateFlow(journal, backend, channel, base, verbs, restart_seconds=FIRST_SECONDS)


@pytest.fixture
def journal(tmp_path):
    """A rollback to 0.0.9 was asked for: the shortest way to a restart."""
    journal = UpdateJournal(tmp_path / "update.json")
    journal.write(UpdateState(current="0.1.0", newest="0.1.0", previous="0.0.9"))
    return journal


async def test_a_refused_restart_is_asked_for_again_and_the_node_serves_meanwhile(
    journal, tmp_path
):
    root = Root(refusals=2)
    flow = updater(tmp_path, root)
    async with running(flow):
        await flow.rollback()
        # The fourth one: it said yes to the third, and the machine did not go down.
        await root.until(4, "reboot")
    again = ["drain", "reboot"]
    begun = ["drain", "snapshot", "prefer", "reboot", "resume", *again, "resume", *again, *again]
    assert root.done[: len(begun)] == begun
    assert journal.read().phase is Phase.REBOOT_PENDING


async def test_the_next_updater_of_the_same_boot_asks_again_and_gives_nothing_up(journal, tmp_path):
    root = Root(refusals=1)
    flow = updater(tmp_path, root)
    await flow.rollback()
    await flow.work(flow._begun.get_nowait())
    assert (root.asked.count(("reboot",)), journal.read().boot) == (1, boot_id())
    # It is killed, and started again.
    flow = updater(tmp_path, root)
    state = await flow.start()
    assert (state.phase, state.blacklist) == (Phase.REBOOT_PENDING, ())
    async with running(flow):
        await root.until(2, "reboot")
    assert journal.read().phase is Phase.REBOOT_PENDING


async def test_a_boots_judge_that_is_started_by_hand_gives_no_armed_release_up(journal, tmp_path):
    armed = UpdateState(
        current="0.1.0",
        phase=Phase.ARMING,
        candidate=Release("0.2.0", "", "", ()),
    )
    journal.write(armed)
    before, _effects = journal.advance(StepDone(Phase.ARMING, boot_id()))
    root = Root(refusals=0)
    judge = BootHealth(journal, SysupdateBackend("0.1.0", root), None)
    assert await judge.failure() == ""
    assert (journal.read(), root.asked) == (before, [])
