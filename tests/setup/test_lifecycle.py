"""A process starts, says when it is ready, drains on SIGTERM and says by its exit code how it was."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nodeapp.core.errors import NodeError, Unavailable
from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Health, Readiness
from tests.fakes.process import Count

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process(state, mode):
    command = (sys.executable, "-m", "tests.fakes.process", str(state), mode)
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)


def socket_of(state):
    return state / "run" / "tested.sock"


async def until_it_answers(state):
    async with asyncio.timeout(20), RpcClient(socket_of(state), "tested") as client:
        while True:
            try:
                return await client.get("/readyz", Readiness, deadline_seconds=1)
            except NodeError:
                await asyncio.sleep(0.02)


async def until_ready(state):
    async with asyncio.timeout(20):
        while not (answer := await until_it_answers(state)).ready:
            await asyncio.sleep(0.02)
    return answer


async def ask(state, message, path="/next"):
    async with RpcClient(socket_of(state), "tested") as client:
        return await client.call(path, message, Count, deadline_seconds=5)


async def test_sigterm_drains_stops_and_exits_with_0(tmp_path):
    with process(tmp_path, "ok") as child:
        ready = await until_ready(tmp_path)
        assert (ready.process, ready.detail, ready.pid) == ("tested", "mode ok", child.pid)
        assert socket_of(tmp_path).stat().st_mode & 0o777 == 0o660
        assert (await ask(tmp_path, Count(number=1))).number == 2
        async with RpcClient(socket_of(tmp_path), "tested") as client:
            assert (await client.get("/healthz", Health, deadline_seconds=5)).healthy
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=15)
        assert (child.returncode, out.split()) == (0, ["drained", "stopped"])
    assert not socket_of(tmp_path).exists()


async def test_a_failed_background_task_ends_the_process_with_1(tmp_path):
    with process(tmp_path, "fails") as child:
        out, errors = await asyncio.to_thread(child.communicate, timeout=20)
    assert (child.returncode, out.split()) == (1, ["stopped"])
    assert "the chain is gone" in errors
    assert not socket_of(tmp_path).exists()


async def test_a_bug_in_a_background_task_ends_the_process_with_1(tmp_path):
    with process(tmp_path, "breaks") as child:
        out, errors = await asyncio.to_thread(child.communicate, timeout=20)
    assert (child.returncode, out.split()) == (1, ["stopped"])
    assert "ZeroDivisionError" in errors


async def test_a_start_that_fails_says_why_and_closes_what_was_opened(tmp_path):
    with process(tmp_path, "refuses") as child:
        out, errors = await asyncio.to_thread(child.communicate, timeout=20)
    assert (child.returncode, out.split()) == (1, ["stopped"])
    assert "chain.keystore_file is not set" in errors


async def test_corrupt_state_ends_the_process_with_1(tmp_path):
    with process(tmp_path, "ok") as child:
        await until_ready(tmp_path)
        with pytest.raises(Unavailable, match="restarts"):
            await ask(tmp_path, Count(number=1, how="corrupt"))
        _, errors = await asyncio.to_thread(child.communicate, timeout=15)
    assert child.returncode == 1
    assert "record 7 does not replay" in errors


async def test_corrupt_state_found_in_a_stream_ends_the_process_too(tmp_path):
    with process(tmp_path, "ok") as child:
        await until_ready(tmp_path)
        seen = []
        async with RpcClient(socket_of(tmp_path), "tested") as client:
            with pytest.raises(Unavailable):
                await drain(client, Count(number=2, how="corrupt"), seen)
        _, errors = await asyncio.to_thread(child.communicate, timeout=15)
    assert child.returncode == 1
    assert "record 7 does not replay" in errors


async def drain(client, message, seen):
    async with client.stream("/stream", message, Count, deadline_seconds=5) as events:
        async for event in events:
            seen.append(event.number)


async def test_a_process_that_is_starting_answers_503_and_can_be_stopped(tmp_path):
    with process(tmp_path, "slow") as child:
        answer = await until_it_answers(tmp_path)
        assert not answer.ready
        with pytest.raises(Unavailable, match="not ready"):
            await ask(tmp_path, Count(number=1))
        child.send_signal(signal.SIGTERM)
        await asyncio.to_thread(child.communicate, timeout=15)
        assert child.returncode == 0


async def test_a_stale_socket_of_a_killed_process_is_replaced(tmp_path):
    with process(tmp_path, "ok") as child:
        await until_ready(tmp_path)
        child.kill()
        child.wait(10)
    assert socket_of(tmp_path).exists()
    with pytest.raises(Unavailable, match="not reachable"):
        await ask(tmp_path, Count(number=1))
    with process(tmp_path, "ok"):
        await until_ready(tmp_path)


def test_a_child_dies_with_its_parent(tmp_path):
    with process(tmp_path, "parent") as parent:
        pid = int(parent.stdout.readline())
        asyncio.run(until_ready(tmp_path))
        child = psutil.Process(pid)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child lives on"
            time.sleep(0.02)
