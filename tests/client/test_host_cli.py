"""`fabstir-node host` as an operator uses it, over a real chain process, chain and contracts."""

import asyncio
import subprocess
import time

import msgspec
import pytest

from nodeapp.devnet.provision import STAKE, ensure_keys
from nodeapp.service.config import load_settings
from nodeapp.service.paths import resolve_paths
from nodeapp.service.single import ONLY_READS, Manner, reachable_process
from nodeapp.service.tree import read_readiness
from tests.client.host_world import API_URL, FIRST, SECOND, host_world
from tests.world import CLI, ROOT, left_of

pytestmark = pytest.mark.timeout(120)


async def test_a_host_registers_reprices_and_leaves_from_the_command_line(tmp_path):
    async with (
        host_world(tmp_path) as world,
        reachable_process(load_settings(world.config), "chain"),
    ):

        async def host(*arguments, code=0):
            done = await asyncio.to_thread(world.host, *arguments)
            assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
            return done.stdout if code in (0, 3) else done.stderr

        await world.fund(fab=STAKE)
        refused = await host("register", code=1)
        assert "add --yes" in refused
        assert f"does not answer at {API_URL} itself" in refused
        done = msgspec.json.decode(await host("register", "--yes", "--json"))
        assert len(done["steps"]) == len(done["done"]) == 4
        assert "2 USD per million tokens (2000 on chain)" in done["steps"][2]
        assert all(one["tx_hash"].startswith("0x") for one in done["done"])
        node = await world.contracts.node(world.wallet.address)
        assert (node.active, node.model_ids) == (True, (FIRST.model_id,))

        second = f"{SECOND.repo}/{SECOND.file_name}"
        await host("models", "add", second, "--price", f"{second} 1.25 usd", "--yes")
        suggested = await host(
            *("price", "suggest", "--electricity-per-kwh", "0.30", "--watts", "300"),
            *("--tokens-per-second", "100", "--apply", "--yes"),
        )
        assert "floor      0.2778 USD" in suggested
        assert "suggested  0.556 USD" in suggested
        drift = await host("status", code=3)
        assert f"price of model {second} on chain is 1.25 USD, settings say 2 USD" in drift
        assert "on chain is 0.556 USD, settings say 2 USD" in drift
        assert "1000 FAB return" in await host("unregister", "--yes")


async def test_while_the_node_is_down_the_money_process_runs_for_the_command_only(tmp_path):
    async with host_world(tmp_path) as world:
        done = await asyncio.to_thread(world.host, "status")
        assert "not registered" in done.stdout
        assert left_of(tmp_path / "n") == []
        world.write_settings(listing_prices=["* 2.00 euro"])
        done = await asyncio.to_thread(world.host, "status")
        assert done.returncode == 1
        assert done.stderr.startswith("error: chain cannot run: price '* 2.00 euro' is not MODEL")
        assert done.stderr.count("\n") == 1


async def test_a_verb_that_only_reads_makes_no_journal_and_does_not_bind_the_wallet(tmp_path):
    async with host_world(tmp_path) as world:
        marker = next(tmp_path.rglob("host.json")).with_name("host.json.journal")
        elsewhere = ("--state-dir", tmp_path / "elsewhere")
        for verb in (("host", "register", "--dry-run"), ("earnings",)):
            done = await asyncio.to_thread(fabstir, *verb, "--config", world.config, *elsewhere)
            assert done.returncode in (0, 1, 3), done.stderr
            assert "cannot run" not in done.stderr
        assert list(tmp_path.rglob("journal.db*")) == []
        assert not marker.exists()
        # The node itself is not in their way.
        async with reachable_process(load_settings(world.config), "chain"):
            assert marker.read_text().endswith(f"{tmp_path}/n/chain/journal.db\n")
        lost = await asyncio.to_thread(fabstir, "earnings", "--config", world.config, *elsewhere)
        assert lost.returncode == 1
        assert f"it is {tmp_path}/n/chain/journal.db, says {marker}" in lost.stderr
        assert f"run with --state-dir {tmp_path}/n " in lost.stderr


async def test_a_chain_that_does_not_answer_is_told_at_once(tmp_path):
    async with host_world(tmp_path) as world:
        world.write_settings(rpc_urls=["http://127.0.0.1:9"])
        verb = await asyncio.create_subprocess_exec(
            *(*CLI, "host", "status", "--config", str(world.config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert verb.stderr is not None
        try:
            async with asyncio.timeout(60):
                line = (await verb.stderr.readline()).decode()
            assert line.startswith("chain is not ready: ")
            assert "127.0.0.1:9" in line
            assert line.endswith("; waiting 15 s at most\n")
        finally:
            verb.terminate()
            async with asyncio.timeout(30):
                await verb.wait()
        assert left_of(tmp_path / "n") == []


async def test_a_verb_that_writes_waits_for_one_that_only_reads(tmp_path):
    async with host_world(tmp_path) as world, asyncio.TaskGroup() as tasks:
        settings, is_told = load_settings(world.config), asyncio.Event()

        async def write(manner):
            async with reachable_process(settings, "chain", manner):
                return (await read_readiness(resolve_paths(settings.node), "chain")).detail

        said = []

        def tell(text):
            said.append(text)
            is_told.set()

        reads = Manner(only_reads=True)
        async with reachable_process(settings, "chain", reads), asyncio.timeout(60):
            assert ONLY_READS in await write(reads), "two that read share it"
            writing = tasks.create_task(write(Manner(tell=tell)))
            await is_told.wait()
            assert "another command asks it" in said[0]
        async with asyncio.timeout(60):
            assert "0 sessions" in await writing


@pytest.mark.slow
async def test_a_verb_that_only_reads_gives_up_soon(tmp_path):
    async with host_world(tmp_path) as world:
        world.write_settings(rpc_urls=["http://127.0.0.1:9"])
        began = time.monotonic()
        done = await asyncio.to_thread(world.host, "status")
        assert done.returncode == 1
        assert "error: chain is not ready after 15 s: " in done.stderr
        assert time.monotonic() - began < 40


def fabstir(*arguments):
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_wallet_is_made_once_and_for_its_owner_only(tmp_path):
    keys = ("--keystore", tmp_path / "k" / "host.json", "--password-file", tmp_path / "k" / "pass")
    made = fabstir("wallet", "new", *keys)
    assert made.returncode == 0, made.stderr
    for name in ("host.json", "pass"):
        assert (tmp_path / "k" / name).stat().st_mode & 0o777 == 0o600
    again = fabstir("wallet", "new", *keys)
    assert again.returncode == 1
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_a_wallet_is_shown_with_the_key_that_clients_encrypt_to(tmp_path):
    keys = ensure_keys(tmp_path, "host")
    shown = fabstir(
        *("wallet", "show", "--set", f"chain.keystore_file={keys.keystore_file}"),
        *("--set", f"chain.password_file={keys.password_file}"),
    )
    public_key = keys.wallet.public_key.hex()
    assert shown.stdout == f"{keys.wallet.address}  public key {public_key}\n"
