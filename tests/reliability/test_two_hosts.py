"""Two hosts sell the same model; the one that answers dies, the other one goes on."""

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from nodeapp.devnet.provision import HostOffer, ensure_keys, provision_host
from nodeapp.devnet.world import free_port
from nodeapp.evm.deployment import load_deployment
from nodeapp.renter.events import AnswerEnded, FailedOver, SessionPaid
from tests.world import STORY, Started, World, as_toml, started_devnet

MAX_TOKENS = 160
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_the_answer_of_a_dead_host_is_finished_by_another_and_each_is_paid_its_part(tmp_path):
    with started_devnet(tmp_path) as world:
        world.start_node().until_said("node ready", 90)
        cheap = start_second_host(world, price=1500)
        try:
            cheap.until_said("node ready", 120)
            home = world.renter("torn", failover_seconds=3.0)
            chat = home.chat(STORY, "--max-tokens", MAX_TOKENS)
            chat.until_tokens(30, seconds=60)
            kill_supervisord(cheap)
            assert chat.finish(120) == 0, chat.err
        finally:
            cheap.stop()
        ended = chat.one(AnswerEnded)
        assert (ended.tokens, ended.hosts) == (MAX_TOKENS, 2)
        first, second = [paid.job_id for paid in chat.all(SessionPaid)]
        lost = chat.one(FailedOver)
        assert 30 <= lost.received_tokens < MAX_TOKENS
        received = [len(home.record(job).token_ids) for job in (first, second)]
        assert received == [lost.received_tokens, MAX_TOKENS - lost.received_tokens]
        settled = world.until_settled(second)
        # 100 tokens are the least that can be claimed.
        assert settled.tokens_used == (received[1] if received[1] >= 100 else 0)
        assert world.node.stop() == 0


def start_second_host(world: World, *, price: int) -> Started:
    """Funded, registered at this price, with a state directory and ports of its own."""
    directory = world.directory / "second"
    directory.mkdir()
    keys = ensure_keys(directory, "host")
    deployment = load_deployment(Path(str(world.renter_values["deployment_file"])))
    portal = free_port()
    offer = HostOffer(
        (world.renter_values["model_id"],), f"http://127.0.0.1:{portal}", price_stable=price
    )

    async def provision() -> None:
        async with world.provider() as provider:
            await provision_host(provider, deployment, keys.wallet, offer)

    asyncio.run(provision())
    values = world.node_values
    values["node"]["state_dir"] = str(directory / "state")
    values["chain"] |= {
        "keystore_file": str(keys.keystore_file),
        "password_file": str(keys.password_file),
    }
    values["s5"]["listen_port"] = portal
    values["p2p"] |= {
        "listen": f"/ip4/127.0.0.1/tcp/{free_port()}",
        "portal_url": f"http://127.0.0.1:{portal}",
    }
    config = directory / "node.toml"
    config.write_text(as_toml(values))
    return Started(directory, "run", "run", "--config", config)


def kill_supervisord(node: Started) -> None:
    """The whole tree goes with it."""
    for child in psutil.Process(node.process.pid).children(recursive=True):
        if "supervisor.supervisord" in child.cmdline():
            child.send_signal(signal.SIGKILL)
            return
    raise AssertionError("the second node has no supervisord")
