"""Updates that come by themselves: soon after a start, restarting only in the operator's hours."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.update import Phase
from nodeapp.core.window import DAY_SECONDS, seconds_until
from nodeapp.service.lifecycle import Shell
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import NodeSettings, UpdaterSettings
from nodeapp.updater import updates
from nodeapp.updater.updates import Updates
from tests.fakes.clock import FakeClock
from tests.fakes.release_repository import published
from tests.fakes.update_node import offer

MIDNIGHT = 20_000 * DAY_SECONDS
HOUR = 3600


@pytest.mark.parametrize(
    ("window", "hour", "until"),
    [
        ("", 12.0, 0.0),
        ("02:00-05:00", 1.5, 0.5),
        ("02:00-05:00", 2.0, 0.0),
        ("02:00-05:00", 4.999, 0.0),
        ("02:00-05:00", 5.0, 21.0),
        ("23:30-01:00", 23.0, 0.5),
        ("23:30-01:00", 0.5, 0.0),
        ("23:30-01:00", 1.0, 22.5),
        ("04:00-04:00", 17.0, 0.0),
    ],
)
def test_how_long_until_the_hours_begin(window, hour, until):
    assert seconds_until(window, MIDNIGHT + hour * HOUR) == pytest.approx(until * HOUR)


TIMES = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")


@given(st.tuples(TIMES, TIMES).map("-".join), st.floats(0, 4e9))
def test_the_hours_are_open_when_they_were_waited_for(window, now):
    msgspec.convert({"window": window}, UpdaterSettings)
    wait = seconds_until(window, now)
    assert 0 <= wait < DAY_SECONDS
    assert seconds_until(window, now + wait + 0.001) == 0


@pytest.mark.parametrize("window", ["2:00-5:00", "02:00", "24:00-01:00", "02:00-05:60", "at night"])
def test_hours_that_cannot_be_read_are_refused(window):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"window": window}, UpdaterSettings)


@pytest.fixture
def shop(tmp_path):
    with published(tmp_path / "shop") as made:
        offer(made, "9.2.0")
        yield made


class Node:
    """The updater's part for releases, over a real repository; its clock stands still."""

    def __init__(self, base, shop, **more):
        node = NodeSettings(state_dir=str(base / "state"), processes=("updater",))
        self.clock = FakeClock(MIDNIGHT + 12.0 * HOUR)
        shell = Shell("updater", node, resolve_paths(node), Metrics("updater"), self.clock)
        settings = UpdaterSettings(
            backend="venv",
            repository_url=shop.url,
            trusted_root_file=str(shop.root),
            apply_automatically=True,
            **more,
        )
        self.updates = Updates(shell, settings, snapshot=None)

    @property
    def state(self):
        return self.updates._flow.state()

    async def until(self, reached):
        async with asyncio.timeout(20):
            while not reached(self.state):
                await asyncio.sleep(0.01)


async def test_a_release_is_found_by_day_and_installed_at_night(tmp_path, shop):
    node = Node(tmp_path, shop, window="02:00-05:00", check_interval_seconds=0.05)
    async with asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(run(node))
        await node.until(lambda state: state.available)
        looks = shop.seen.count("/metadata/timestamp.json")
        while shop.seen.count("/metadata/timestamp.json") < looks + 3:
            await asyncio.sleep(0.01)
        assert not any("fabstir-node-9.2.0" in path for path in shop.seen)
        node.clock.now += 15 * HOUR
        # This release has no set-up: as far as it comes.
        await node.until(lambda state: "set-up of release 9.2.0" in state.reason)
        stopping.cancel()
    assert any("fabstir-node-9.2.0" in path for path in shop.seen)


async def test_the_first_look_does_not_wait_for_the_interval(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(updates, "FIRST_LOOK_SECONDS", 0)
    monkeypatch.setattr(updates, "LAST_FIRST_LOOK_SECONDS", 0)
    node = Node(tmp_path, shop, check_interval_seconds=21_600.0, window="02:00-05:00")
    async with asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(run(node))
        await node.until(lambda state: state.available)
        stopping.cancel()
    assert node.state.phase is Phase.IDLE


async def run(node):
    async with asyncio.TaskGroup() as tasks:
        await node.updates.start(tasks)
        await asyncio.Event().wait()
