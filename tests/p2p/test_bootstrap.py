import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import ModelId
from nodeapp.network.settings import PROCESS_ENVIRONMENT
from nodeapp.wire.provider_key import provider_key
from tests.p2p.hosts import running, until

KEY = provider_key(ModelId("0x" + "cd" * 32), 31337)


def command(directory, *more):
    return [
        sys.executable,
        "-m",
        "nodeapp.p2p.bootstrap",
        "--state-dir",
        str(directory / "state"),
        "--ready-file",
        str(directory / "ready"),
        *more,
    ]


@contextlib.contextmanager
def started(arguments, **options):
    environment = os.environ | dict(PROCESS_ENVIRONMENT)
    process = subprocess.Popen(
        arguments, env=environment, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


async def test_a_bootstrap_process_serves_until_it_is_asked_to_end(tmp_path):
    ready = tmp_path / "ready"
    with started(command(tmp_path)) as process:
        await until(ready.exists, 30)
        address = ready.read_text().strip()
        with started(command(tmp_path, "--ready-file", str(tmp_path / "other"))) as second:
            async with running(tmp_path, "host") as host:
                assert await host.dht.join([address]) == 1
                assert await host.dht.provide(KEY)
            assert second.wait(timeout=30) == 1
            assert "stop it first" in second.stderr.read()
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - asked < 3
        assert not ready.exists()


async def test_a_killed_peer_ends_its_streams_and_connections(tmp_path):
    ready = tmp_path / "ready"
    with started(command(tmp_path)) as process:
        await until(ready.exists, 30)
        async with running(tmp_path, "host") as host:
            peer_id = await host.connect(ready.read_text().strip())
            stream = await host.open_stream(peer_id, ["/ipfs/ping/1.0.0"])
            process.kill()
            with pytest.raises(Unavailable, match="read on stream"):
                await stream.read_frame(deadline_seconds=10)
            await until(lambda: not host.connected_peers())


async def test_a_bootstrap_process_dies_with_its_parent(tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    parent_command = [sys.executable, "-c", code, *command(tmp_path)]
    with started(parent_command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        await until((tmp_path / "ready").exists, 30)
        parent.kill()
        await until(lambda: not is_running(child))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_a_frozen_peer_costs_no_more_than_the_deadline(tmp_path):
    ready = tmp_path / "ready"
    with started(command(tmp_path)) as process:
        await until(ready.exists, 30)
        async with running(tmp_path, "host") as host:
            peer_id = await host.connect(ready.read_text().strip())
            process.send_signal(signal.SIGSTOP)
            asked = time.monotonic()
            with pytest.raises(Unavailable, match=r"not done in 0\.3 s"):
                await host.open_stream(peer_id, ["/ipfs/ping/1.0.0"], deadline_seconds=0.3)
            assert time.monotonic() - asked < 2
