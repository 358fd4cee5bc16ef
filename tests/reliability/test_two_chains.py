"""One node sells on two chains at once; each session is paid on its own."""

import pytest
import tomli

from nodeapp.renter.events import AnswerEnded, SessionPaid
from tests.world import RenterHome, World, as_toml, started_devnet

TOKENS = 110
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_node_serves_and_settles_sessions_of_two_chains(tmp_path):
    with (
        started_devnet(tmp_path / "one") as world,
        started_devnet(tmp_path / "two", chain_id=31338) as other,
    ):
        add_chain(world, other)
        world.start_node().until_said("node ready", 120)
        assert "chain-second" in world.status()
        here, there = world.renter("here"), renter_of(other, world)
        chats = [home.chat("Tell a story.", "--max-tokens", TOKENS) for home in (here, there)]
        for chat in chats:
            assert chat.finish(180) == 0, chat.err
            assert chat.one(AnswerEnded).tokens == TOKENS
        jobs = [chat.one(SessionPaid).job_id for chat in chats]
        assert jobs == [1, 1]  # the same number on both: neither may be taken for the other
        for chain, job_id in ((world, 1), (other, 1)):
            settled = chain.until_settled(job_id)
            assert settled.tokens_used == TOKENS
        assert world.on_chain(1).host != other.on_chain(1).host
        assert world.node is not None
        assert world.node.stop() == 0


def add_chain(world: World, other: World) -> None:
    """The other development chain becomes the second one of this world's node."""
    section = tomli.loads(other.node_file.read_text())["chain"]
    text = as_toml({"chains.second": section})
    world.node_file.write_text(world.node_file.read_text() + "\n" + text)


def renter_of(other: World, world: World) -> RenterHome:
    """Pays on the other chain and finds hosts through this world's bootstrap."""
    return other.renter("there", bootstrap=world.renter_values["bootstrap"])
