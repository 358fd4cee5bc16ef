"""The supervisor tree on real processes: it comes up, heals, refuses a twin, leaves nothing."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.service.settings import (
    InferenceSettings,
    NodeSettings,
    P2pSettings,
    Settings,
    WatchdogSettings,
)
from nodeapp.service.supervisord import supervisor_socket
from nodeapp.service.tree import NodeTree, read_readiness, start_tree, tree_status
from tests.fakes.tiny_model import tiny_model

ROOT = Path(__file__).resolve().parents[2]
QUICK = WatchdogSettings(probe_seconds=0.2, misses=2, probe_timeout_seconds=0.5)


def settings_in(directory: Path) -> Settings:
    return Settings(
        node=NodeSettings(
            state_dir=str(directory / "s"),
            cache_dir=str(directory / "c"),
            processes=("updater",),
        ),
        watchdog=QUICK,
    )


async def started(directory: Path) -> NodeTree:
    tree = await start_tree(settings_in(directory))
    try:
        await tree.wait_ready(deadline_seconds=20)
    except BaseException:
        await tree.stop()
        raise
    return tree


async def until(condition, what: str, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def pid_of(tree: NodeTree, process: str) -> int:
    try:
        return (await read_readiness(tree.paths, process, seconds=0.5)).pid
    except Unavailable:
        return 0


@pytest.fixture
async def tree(tmp_path):
    running = await started(tmp_path)
    yield running
    assert await running.stop() == []


async def test_the_tree_comes_up_ready_and_stops_without_a_trace(tmp_path):
    tree = await started(tmp_path)
    pids = tree.pids()
    (updater,) = await tree_status(tree.paths, ("updater",))
    assert updater.ready
    assert updater.state in ("STARTING", "RUNNING")
    assert supervisor_socket(tree.paths).stat().st_mode & 0o777 == 0o700
    assert len(pids) == 3
    began = time.monotonic()
    assert await tree.stop() == []
    assert time.monotonic() - began < 15
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert list(tree.paths.run.glob("*.sock")) == []


async def test_a_second_tree_on_the_same_state_is_refused(tree, tmp_path):
    with pytest.raises(Rejected, match=f"in use by process {os.getpid()}"):
        await start_tree(settings_in(tmp_path))


async def test_a_killed_process_comes_back(tree):
    before = await pid_of(tree, "updater")
    os.kill(before, signal.SIGKILL)

    async def is_back() -> bool:
        return await pid_of(tree, "updater") not in (0, before)

    await until(is_back, "the updater to come back")


async def test_a_silent_process_is_killed_by_the_watchdog_and_comes_back(tree):
    before = await pid_of(tree, "updater")

    async def watchdog_has_looked() -> bool:
        (watchdog,) = await tree_status(tree.paths, ("watchdog",))
        return watchdog.detail == "everyone answers"

    await until(watchdog_has_looked, "the watchdog")
    os.kill(before, signal.SIGSTOP)

    async def is_back() -> bool:
        return await pid_of(tree, "updater") not in (0, before)

    await until(is_back, "the watchdog to replace the silent updater", seconds=25)
    assert not psutil.pid_exists(before)


async def test_killing_supervisord_leaves_no_orphan(tmp_path):
    tree = await started(tmp_path)
    pids = tree.pids()
    tree.supervisor.kill()
    assert await tree.stop() == []

    async def all_gone() -> bool:
        return not any(psutil.pid_exists(pid) for pid in pids)

    await until(all_gone, "the orphans to die", seconds=5)


async def test_a_process_that_cannot_run_is_named_with_its_reason(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "s" / "updater").parent.mkdir()
    (tmp_path / "s" / "updater").write_text("a file where the directory should be")
    tree = await start_tree(settings_in(tmp_path))
    try:
        with pytest.raises(Unavailable, match=r"updater cannot run.*FileExistsError"):
            await tree.wait_ready(deadline_seconds=40)
    finally:
        assert await tree.stop() == []


async def test_who_answers_may_wait_for_the_world_and_who_is_silent_may_not(tmp_path):
    settings = Settings(
        node=replace(settings_in(tmp_path).node, processes=("p2p",)),
        p2p=P2pSettings(listen="/ip4/127.0.0.1/tcp/0"),
        watchdog=QUICK,
    )
    tree = await start_tree(settings)
    try:
        with pytest.raises(Unavailable, match=r"not ready inside 0\.1 s: p2p"):
            await tree.wait_ready(deadline_seconds=0.1, may_wait=True)
        await until(lambda: pid_of(tree, "p2p"), "p2p to answer", seconds=30)
        with pytest.raises(Unavailable, match=r"not ready inside 0\.1 s: p2p \(waits for "):
            await tree.wait_ready(deadline_seconds=0.1)
        why = await tree.wait_ready(deadline_seconds=0.1, may_wait=True)
        assert why.startswith("p2p (waits for ")
    finally:
        assert await tree.stop() == []


@pytest.mark.slow
async def test_a_replica_that_cannot_run_keeps_the_node_from_nothing(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "inference-1").write_text("a file where the directory should be")
    model = tmp_path / "m.gguf"
    model.write_bytes(tiny_model())
    settings = Settings(
        node=replace(settings_in(tmp_path).node, processes=("inference", "inference-1")),
        inference=InferenceSettings(replicas=2, model_path=str(model), context_length=256),
        watchdog=QUICK,
    )
    tree = await start_tree(settings)
    said = {}
    try:
        await tree.wait_ready(
            deadline_seconds=50, report=lambda one: said.update({one.process: one})
        )
        assert said["inference"].ready
        assert not said["inference-1"].ready
        assert said["inference-1"].detail.startswith("cannot run: ")
        assert (await tree_status(tree.paths, ("inference",)))[0].ready
    finally:
        assert await tree.stop() == []


RUN = [sys.executable, "-m", "nodeapp.cli.main", "run", "--set", 'node.processes=["updater"]']


@contextmanager
def running_command(state: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """`fabstir-node run`, ready; with the process ids below it."""
    with subprocess.Popen(
        [*RUN, "--state-dir", str(state)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as run:
        try:
            assert run.stderr is not None
            lines = []
            for line in run.stderr:
                lines.append(line)
                if line.startswith("node ready"):
                    break
            pids = [child.pid for child in psutil.Process(run.pid).children(recursive=True)]
            assert len(pids) == 3, "".join(lines)
            yield run, pids
        finally:
            run.kill()


def test_what_keeps_supervisord_from_starting_is_told(tmp_path):
    def with_few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    done = subprocess.run(
        [*RUN, "--state-dir", str(tmp_path / "s")],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        preexec_fn=with_few_files,
    )
    assert done.returncode == 1
    assert "minimum number of file descriptors" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_run_command_stops_cleanly_on_a_signal(tmp_path, number):
    with running_command(tmp_path / "s") as (run, pids):
        run.send_signal(number)
        assert run.wait(timeout=20) == 0, run.stderr.read()
        assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_second_run_command_is_refused_and_killing_the_first_leaves_nothing(tmp_path):
    with running_command(tmp_path / "s") as (run, pids):
        second = subprocess.run(
            [*RUN, "--state-dir", str(tmp_path / "s")],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=20,
        )
        assert second.returncode == 1
        assert f"is in use by process {run.pid}; stop that one first" in second.stderr
        run.kill()
        run.wait(timeout=10)

        async def all_gone() -> bool:
            return not any(psutil.pid_exists(pid) for pid in pids)

        await until(all_gone, "everything below the killed command to die", seconds=10)


def test_the_status_command_says_that_nothing_runs(tmp_path):
    command = [sys.executable, "-m", "nodeapp.cli.main", "status", "--state-dir", str(tmp_path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=20
    )
    assert done.returncode == 1
    assert "no node runs on state directory" in done.stderr
