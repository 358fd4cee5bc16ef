"""kill -9 of any process in mid-answer: the tree heals, the answer is whole, the money is exact."""

import os
import signal

import psutil
import pytest

from nodeapp.core.errors import NotFound
from nodeapp.renter.events import AnswerEnded, SessionPaid, TokensReceived
from tests.world import (
    Chat,
    RenterHome,
    World,
    last_line,
    left_of,
    started_devnet,
    until,
    until_nothing_left,
)

pytestmark = pytest.mark.timeout(240)
TOKENS = 220
COUNTING = "Write the numbers from 1 to 100, separated by commas."
"""Every token of its greedy answer is far from second best. A story's are not: a resumed answer
is prefilled, kernels round there otherwise, and a near tie may fall the other way."""
NUMBERS = ", ".join(map(str, range(1, 101)))


def kill(world: World, process: str) -> int:
    pid = world.pid(process)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid), f"{process} dead", 10)
    return pid


def holds(world: World, renter: RenterHome, chat: Chat) -> None:
    """Whole answer, exact money, and a tree that is up."""
    assert chat.finish(120) == 0, chat.err
    ended = chat.one(AnswerEnded)
    assert "".join(event.text for event in chat.all(TokensReceived)) == ended.answer
    assert NUMBERS.startswith(ended.answer), ended.answer
    job = world.until_settled(ended.job_id, 90)
    assert job.tokens_used == TOKENS == len(renter.record(ended.job_id).token_ids)
    assert job.host_share + job.treasury_share + job.refund == job.deposit
    verify = renter.command("verify", "--job", ended.job_id)
    assert verify.finish() == 0, verify.out + verify.err
    world.until_ready()


def test_an_answer_outlives_engine_network_and_ledger(world: World):
    renter = world.renter("thrice")
    chat = renter.chat(COUNTING, "--max-tokens", TOKENS)
    for tokens, process in ((20, "inference"), (70, "p2p"), (120, "chain")):
        chat.until_tokens(tokens, 60)
        kill(world, process)
    holds(world, renter, chat)


@pytest.mark.slow
@pytest.mark.parametrize(
    "process", ["inference", "p2p", "chain", "s5", "prover", "updater", "watchdog"]
)
def test_killing_one_process_costs_nothing(world: World, process: str):
    renter = world.renter(f"without-{process}")
    chat = renter.chat(COUNTING, "--max-tokens", TOKENS)
    chat.until_tokens(30)
    old = kill(world, process)
    holds(world, renter, chat)
    assert until(lambda: world.pid(process), f"{process} again") != old


def has_claim(world: World, job_id: int) -> bool:
    """A session is known to the host a block after the renter paid."""
    try:
        return bool(world.detail(job_id).claims)
    except NotFound:
        return False


@pytest.mark.slow
def test_a_claim_outlives_its_processes(world: World):
    renter = world.renter("claim")
    chat = renter.chat(COUNTING, "--max-tokens", TOKENS)
    job_id = chat.until_event(SessionPaid, 60).job_id
    until(lambda: has_claim(world, job_id), "first claim", 60)
    for process in ("prover", "chain", "s5"):
        kill(world, process)
        until(lambda name=process: world.status()[name].ready, f"{process} ready", 40)
    assert chat.finish(120) == 0, chat.err
    job = world.until_settled(job_id, 90)
    assert job.tokens_used == TOKENS == len(renter.record(job_id).token_ids)


@pytest.mark.slow
def test_without_supervisord_the_node_ends_and_a_new_one_goes_on(tmp_path):
    with started_devnet(tmp_path) as world:
        world.start_node().until_said("node ready", 90)
        renter = world.renter("orphan")
        chat = renter.chat(COUNTING, "--max-tokens", TOKENS)
        chat.until_tokens(30)
        kill(world, "supervisord")
        assert world.node is not None
        assert world.node.finish(20) == 1
        assert last_line(world.node.err).startswith("error: supervisord ended by itself")
        until(lambda: not in_state(world), "no process of the tree left", 10)
        world.start_node().until_said("node ready", 90)
        holds(world, renter, chat)
        assert world.node.stop() == 0
    until_nothing_left(tmp_path)


def in_state(world: World) -> list[str]:
    return left_of(world.paths.state)
