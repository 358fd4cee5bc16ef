import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import ModelId
from nodeapp.network.identity import load_identity
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


def documented_unit():
    """The unit of docs/p2p.md."""
    text = (Path(__file__).parents[2] / "docs" / "p2p.md").read_text("utf-8")
    return text.partition("```ini\n")[2].partition("```")[0]


def service_line(name):
    (line,) = [one for one in documented_unit().splitlines() if one.startswith(f"{name}=")]
    return line.partition("=")[2]


async def test_the_documented_service_is_a_node_that_others_join_by(tmp_path):
    words = service_line("ExecStart").split()
    assert words[1] == "bootstrap"
    assert words[3] == f"/var/lib/{service_line('StateDirectory')}"
    words[3], words[5] = str(tmp_path / "new" / "state"), "/ip4/127.0.0.1/tcp/0"
    arguments = [sys.executable, "-m", "nodeapp.cli.main", *words[1:]]
    for _ in range(2):
        with started(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == "join by:\n"
            address = process.stdout.readline().strip()
            assert address.startswith("/dns4/boot.example.org/tcp/9000/p2p/")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
        identity = address.rpartition("/")[2]
        assert load_identity(tmp_path / "new" / "state" / "identity.key").peer_id == identity


def test_the_documented_unit_is_one_that_systemd_takes(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "fabstir-bootstrap.service"
    program = service_line("ExecStart").split()[0]
    unit.write_text(documented_unit().replace(program, "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


async def test_a_bootstrap_node_of_the_command_line_serves_relays(tmp_path):
    arguments = [sys.executable, "-m", "nodeapp.cli.main", "bootstrap"]
    places = ["--state-dir", str(tmp_path / "b"), "--listen", "/ip4/127.0.0.1/tcp/0", "--relay"]
    with started([*arguments, *places], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "join by:\n"
        address = process.stdout.readline().strip()
        async with running(tmp_path, "host") as host:
            assert await host.dht.join([address]) == 1
            await host.reserve(address)
            assert any("/p2p-circuit/" in one for one in host.addresses)


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
