"""Two inference processes of one model behind one host: who answers, and what a death costs."""

import asyncio
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from nodeapp.renter.events import AnswerEnded, TokensReceived
from nodeapp.service.config import load_settings
from nodeapp.service.tree import running_processes
from tests.world import Chat, Started, World, as_toml, started_devnet, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TOKENS = 160
COUNTING = "Write the numbers from 1 to 100, separated by commas."
NUMBERS = ", ".join(map(str, range(1, 101)))
ONE = '["s5", "inference", "p2p"]'
REPLICAS = ("inference", "inference-1")
OPEN = "fabstir_inference_requests_processing"
CACHED = "fabstir_inference_prompt_tokens_cached_total"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with started_devnet(tmp_path_factory.mktemp("r")) as world:
        values = world.node_values
        values["inference"] |= {"replicas": 2, "threads": 1}
        world.node_file.write_text(as_toml(values))
        world.start_node().until_said("node ready", 120)
        yield world
        assert world.node is not None
        assert world.node.stop() == 0


def open_on(world: World) -> dict[str, float]:
    return {process: world.metric(process, OPEN) for process in REPLICAS}


def whole(world: World, chat: Chat, tokens: int = TOKENS) -> AnswerEnded:
    """The answer came once, and exactly that is paid for."""
    assert chat.finish(120) == 0, chat.err
    ended = chat.one(AnswerEnded)
    assert "".join(event.text for event in chat.all(TokensReceived)) == ended.answer
    assert ended.tokens == chat.tokens() == tokens
    job = world.until_settled(ended.job_id, 90)
    assert job.tokens_used == tokens
    assert job.host_share + job.treasury_share + job.refund == job.deposit
    return ended


def test_two_renters_are_answered_by_two_replicas_and_one_that_dies_costs_nothing(
    pair: World,
) -> None:
    chats = [
        pair.renter(name).chat(COUNTING, "--max-tokens", TOKENS, name=name)
        for name in ("first", "second")
    ]
    for chat in chats:
        chat.until_tokens(20, 60)
    assert open_on(pair) == dict.fromkeys(REPLICAS, 1)
    pid = pair.status()["inference-1"].pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid), "inference-1 dead", 10)
    until(lambda: pair.metric("inference", OPEN) == 2, "both answers on the one that is left")
    for chat in chats:
        assert NUMBERS.startswith(whole(pair, chat).answer)
    until(lambda: pair.status()["inference-1"].ready, "inference-1 again", 60)
    assert pair.status()["inference-1"].pid != pid


def test_a_replica_that_hangs_is_killed_and_its_answer_goes_on_elsewhere(pair: World) -> None:
    chats = [
        pair.renter(name).chat(COUNTING, "--max-tokens", TOKENS, name=name)
        for name in ("third", "fourth")
    ]
    for chat in chats:
        chat.until_tokens(20, 60)
    pid = pair.status()["inference-1"].pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not psutil.pid_exists(pid), "killed by the watchdog", 60)
    for chat in chats:
        assert NUMBERS.startswith(whole(pair, chat).answer)
    until(lambda: pair.status()["inference-1"].ready, "inference-1 again", 60)


def test_a_sessions_second_question_finds_its_prefix_where_the_first_was_answered(
    pair: World,
) -> None:
    renter = pair.renter("kept")
    first = renter.chat(COUNTING, "--max-tokens", 20, "--keep", name="one")
    assert first.finish() == 0, first.err
    before = {process: pair.metric(process, CACHED) for process in REPLICAS}
    second = renter.chat(COUNTING, "--max-tokens", 20, name="two")
    assert second.finish() == 0, second.err
    assert second.one(AnswerEnded).cached_tokens > 0
    after = {process: pair.metric(process, CACHED) for process in REPLICAS}
    assert sum(after[process] > before[process] for process in REPLICAS) == 1


def test_status_and_model_commands_know_every_replica(pair: World) -> None:
    assert "inference-1" in command(pair, "status", "status")
    # "auto" names no number: what runs is asked of supervisord.
    one = load_settings(pair.node_file, flags=["inference.replicas=1", f"node.processes={ONE}"])
    running = asyncio.run(running_processes(pair.paths, one.node.processes))
    assert running == ("s5", *REPLICAS, "p2p")
    unloaded = command(pair, "unload", "model", "unload")
    assert [line.split(":")[0] for line in unloaded.splitlines()] == list(REPLICAS)
    used = command(pair, "use", "model", "use")
    assert [line.split(":")[0] for line in used.splitlines()] == list(REPLICAS)
    until(lambda: pair.metric("p2p", "fabstir_p2p_engine_slots") == 8, "all slots offered")


def command(world: World, name: str, *words: str) -> str:
    started = Started(world.directory, name, *words, "--config", world.node_file)
    assert started.finish(60) == 0, started.err
    return started.out
