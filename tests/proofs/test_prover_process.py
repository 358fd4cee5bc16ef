"""The real process, its socket, its worker: asked, killed, asked again."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.rpc.proof_worker import verify_proofs
from nodeapp.rpc.prover import ProverClient
from nodeapp.service.client import RpcClient
from nodeapp.wire.ipc import Readiness
from tests.proofs.test_proof_queue import request


@asynccontextmanager
async def prover_process(state: Path, *settings: str):
    flags = [f"node.state_dir={state}", f"node.run_dir={state}/r", *settings]
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nodeapp.prover.main",
        *(part for flag in flags for part in ("--set", flag)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                await child.communicate()


async def ready(state: Path) -> Readiness:
    async with asyncio.timeout(30), RpcClient(state / "r" / "prover.sock", "prover") as rpc:
        while True:
            with suppress(Unavailable):
                answer = await rpc.get("/readyz", Readiness, deadline_seconds=5)
                if answer.ready:
                    return answer
            await asyncio.sleep(0.05)


def descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_an_interval_is_proven_over_the_socket_and_kept_over_kill_9(kzg_profile, tmp_path):
    settings = (
        f"prover.profile_dir={kzg_profile}",
        "prover.profile=kzg",
        "prover.allow_test_srs=true",
    )
    async with prover_process(tmp_path, *settings) as child:
        assert "kzg" in (await ready(tmp_path)).detail
        async with ProverClient(tmp_path / "r" / "prover.sock") as client:
            first = await client.prove(request(250), deadline_seconds=120)
            assert (await client.profile()) == first.profile
            with pytest.raises(InvalidRequest):
                await client.prove(request(250, salts=1), deadline_seconds=10)
        child.kill()
        await child.communicate()
    async with prover_process(tmp_path, *settings):
        await ready(tmp_path)
        async with ProverClient(tmp_path / "r" / "prover.sock") as client:
            assert await client.prove(request(250), deadline_seconds=20) == first
    shown = [proof.shown for proof in first.proofs]
    assert [proof.count for proof in shown] == [240, 10]
    assert (await verify_proofs(kzg_profile, shown, allow_test_srs=True)).ok
    assert not (tmp_path / "r" / "prover-work").exists()


async def test_a_killed_prover_takes_its_worker_with_it(poseidon_profile, tmp_path):
    settings = (f"prover.profile_dir={poseidon_profile}", "prover.allow_test_srs=true")
    async with prover_process(tmp_path, *settings) as child:
        await ready(tmp_path)
        async with ProverClient(tmp_path / "r" / "prover.sock") as client:
            asking = asyncio.get_running_loop().create_task(client.prove(request(10)))
            async with asyncio.timeout(20):
                while not (workers := descendants(child.pid)):
                    await asyncio.sleep(0.02)
            os.kill(child.pid, signal.SIGKILL)
            await child.communicate()
            async with asyncio.timeout(10):
                while any(is_alive(worker) for worker in workers):
                    await asyncio.sleep(0.02)
            asking.cancel()
            await asyncio.wait([asking])


async def test_sigterm_in_mid_proof_ends_worker_and_witness_quickly(poseidon_profile, tmp_path):
    settings = (f"prover.profile_dir={poseidon_profile}", "prover.allow_test_srs=true")
    async with prover_process(tmp_path, *settings) as child:
        await ready(tmp_path)
        async with ProverClient(tmp_path / "r" / "prover.sock") as client:
            asking = asyncio.get_running_loop().create_task(client.prove(request(10)))
            async with asyncio.timeout(20):
                while not (workers := descendants(child.pid)):
                    await asyncio.sleep(0.02)
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                await child.communicate()
            assert child.returncode == 0
            assert not any(is_alive(worker) for worker in workers)
            assert not (tmp_path / "r" / "prover-work").exists()
            asking.cancel()
            await asyncio.wait([asking])


async def test_a_test_profile_is_refused_unless_allowed(kzg_profile, tmp_path):
    async with prover_process(tmp_path, f"prover.profile_dir={kzg_profile}") as child:
        async with asyncio.timeout(20):
            _, errors = await child.communicate()
    assert child.returncode == 1
    assert b"allow_test_srs" in errors


async def test_a_missing_profile_is_named(tmp_path):
    async with prover_process(tmp_path, f"prover.profile_dir={tmp_path}/none") as child:
        async with asyncio.timeout(20):
            _, errors = await child.communicate()
    assert child.returncode == 1
    assert b"not there yet" in errors


WITHOUT_EZKL = """
import sys
sys.modules["ezkl"] = None
from nodeapp.prover.main import main
sys.exit(main())
"""


async def test_a_package_without_ezkl_says_so_and_how_to_get_it(tmp_path):
    flags = ("--set", f"node.state_dir={tmp_path}", "--set", f"node.run_dir={tmp_path}/r")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_EZKL, *flags), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, said = await child.communicate()
    assert child.returncode not in (0, None)
    assert b"ezkl is not installed" in said
    assert b"withEzkl" in said
