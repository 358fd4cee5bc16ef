"""Renting from a running node: what goes well, and every way in which it may not."""

import asyncio
from pathlib import Path

import pytest

from nodeapp.core.ids import JobId
from nodeapp.devnet.provision import ensure_keys
from nodeapp.evm.calls import Calls
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.transactions import Transactions
from nodeapp.renter.events import AnswerEnded, SessionClosed, SessionPaid
from tests.world import STORY, RenterHome, World, last_line, until

pytestmark = pytest.mark.timeout(180)


def refused(started, code: int = 1, seconds: float = 60) -> str:
    """The one line a failed command says."""
    assert started.finish(seconds) == code, started.err
    line = last_line(started.err)
    assert line.startswith("error: "), started.err
    assert "Traceback" not in started.err
    return line


@pytest.mark.slow
def test_a_paid_chat_is_settled_and_verified(world: World):
    renter = world.renter("paid")
    chat = renter.chat(STORY, "--max-tokens", 120)
    assert chat.finish() == 0, chat.err
    ended = chat.one(AnswerEnded)
    assert ended.tokens == 120
    job = world.until_settled(ended.job_id)
    assert job.tokens_used == 120 == len(renter.record(ended.job_id).token_ids)
    assert job.host_share + job.treasury_share + job.refund == job.deposit
    verify = renter.command("verify")
    assert verify.finish() == 0, verify.out + verify.err
    assert f"session {ended.job_id}: " in last_line(verify.out)
    assert last_line(verify.out).endswith("120 received: verified")


def test_two_questions_share_one_kept_session(world: World):
    renter = world.renter("kept")
    first = renter.chat("Name three colours.", "--max-tokens", 20, "--keep", name="first")
    assert first.finish() == 0, first.err
    second = renter.chat("Name three animals.", "--max-tokens", 20, name="second")
    assert second.finish() == 0, second.err
    assert not second.all(SessionPaid)
    one, two = first.one(AnswerEnded), second.one(AnswerEnded)
    assert two.job_id == one.job_id
    assert two.session_tokens == one.tokens + two.tokens


def test_the_deposit_of_a_session_too_short_to_be_claimed_comes_back(world: World):
    renter = world.renter("short")
    chat = renter.chat("Name three colours.", "--max-tokens", 10)
    assert chat.finish() == 0, chat.err
    job_id = chat.one(SessionPaid).job_id
    assert not chat.one(SessionClosed).claimable
    waits = renter.command("refund")
    assert waits.finish() == 0, waits.err
    assert f"session {job_id}: can be ended from 20" in waits.out
    ended = renter.command("refund", "--now", "--job", job_id)
    assert ended.finish() == 0, ended.err
    job = world.until_settled(job_id)
    assert f"session {job_id}: {job.refund} base units came back" in ended.out
    assert (job.tokens_used, job.host_share) == (0, job.deposit - job.refund)
    assert job.host_share > 0, "minTokensFee, all of it the host's"
    again = renter.command("refund")
    assert again.finish() == 0, again.err
    assert "no session is open" in again.out


def test_a_session_that_is_completed_on_chain_in_mid_answer_ends_the_answer_with_the_reason(
    world: World,
):
    renter = world.renter("hasty")
    chat = renter.chat(STORY, "--max-tokens", 2_000)
    chat.until_tokens(20)
    job_id = chat.one(SessionPaid).job_id
    complete(world, renter, job_id)
    line = refused(chat)
    assert f"session {job_id} is completed" in line
    assert len(renter.record(job_id).token_ids) < 2_000
    assert world.metric("p2p", "fabstir_p2p_open_requests") == 0


def complete(world: World, renter: RenterHome, job_id: int) -> None:
    """The renter ends its session past the host."""
    deployment = load_deployment(Path(str(world.renter_values["deployment_file"])))
    wallet = ensure_keys(renter.directory, "wallet").wallet

    async def send() -> None:
        async with world.provider() as provider:
            call = Calls(deployment).complete_session(JobId(job_id))
            await Transactions(provider).send(call, wallet)

    asyncio.run(send())


def test_an_unknown_model_is_refused_in_one_line(world: World):
    renter = world.renter("unknown")
    line = refused(renter.chat("Hello", "--model", "0x" + "ab" * 32))
    assert "model" in line
    assert "ab" * 8 in line


def test_a_prompt_over_the_context_is_refused_with_numbers_and_the_session_goes_on(world: World):
    renter = world.renter("long")
    line = refused(renter.chat("lighthouse " * 6000, "--max-tokens", 20, "--keep", name="long"))
    assert "4096" in line
    after = renter.chat("Hello", "--max-tokens", 10, name="after")
    assert after.finish() == 0, after.err
    assert not after.all(SessionPaid)
    assert after.one(AnswerEnded).tokens > 0


def test_a_renter_without_funds_is_told_what_to_do(world: World):
    renter = world.renter("poor", usdc=1)
    line = refused(renter.chat("Hello"))
    assert "holds 1 base units of USDC" in line
    assert "send USDC to it or lower the deposit" in line


def test_a_deposit_under_the_marketplaces_minimum_is_refused(world: World):
    renter = world.renter("small", deposit=499_999)
    line = refused(renter.chat("Hello"))
    assert "deposit" in line.lower()


def test_another_chain_id_is_refused(world: World):
    renter = world.renter("elsewhere", chain_id=1)
    line = refused(renter.chat("Hello"))
    assert "31337" in line
    assert "1" in line


def test_a_renter_that_vanishes_frees_the_sequence_and_may_come_back(world: World):
    renter = world.renter("gone")
    chat = renter.chat(STORY, "--max-tokens", 1500, "--keep", name="gone")
    chat.until_tokens(60)
    chat.kill()
    until(lambda: world.metric("p2p", "fabstir_p2p_open_requests") == 0, "answer dropped", 20)
    until(lambda: sequences(world) == 0, "sequence freed", 10)
    received = len(renter.record(chat.one(SessionPaid).job_id).token_ids)
    again = renter.chat(STORY, "--max-tokens", 60, name="again")
    assert again.finish() == 0, again.err
    assert not again.all(SessionPaid)
    ended = again.one(AnswerEnded)
    assert ended.session_tokens == received + ended.tokens
    assert world.detail(ended.job_id).session.acknowledged == ended.session_tokens


@pytest.mark.slow
def test_two_renters_are_served_at_once(world: World):
    left, right = world.renter("left"), world.renter("right")
    chats = [left.chat(STORY, "--max-tokens", 150), right.chat(STORY, "--max-tokens", 150)]
    for chat in chats:
        assert chat.finish(90) == 0, chat.err
    ends = [chat.one(AnswerEnded) for chat in chats]
    assert ends[0].job_id != ends[1].job_id
    assert [end.tokens for end in ends] == [150, 150]


@pytest.mark.slow
def test_a_stopped_renter_says_so_and_leaves_the_engine_free(world: World):
    renter = world.renter("stopped")
    chat = renter.chat(STORY, "--max-tokens", 1500)
    chat.until_tokens(8)
    assert chat.stop(15) == 130
    assert "Traceback" not in chat.err
    until(lambda: sequences(world) == 0, "sequence freed", 15)


@pytest.mark.slow
def test_a_chain_that_does_not_answer_degrades_the_node_and_it_recovers(world: World):
    anvil = world.anvil()
    pid = world.pid("chain")
    anvil.suspend()
    try:
        until(
            lambda: "not" in world.status()["chain"].detail.lower() or troubled(world),
            "chain says what is wrong",
            40,
        )
        assert world.status()["chain"].ready
    finally:
        anvil.resume()
    until(lambda: not troubled(world), "chain process recovered", 30)
    assert world.pid("chain") == pid
    renter = world.renter("patient")
    chat = renter.chat("Hello", "--max-tokens", 10)
    assert chat.finish() == 0, chat.err


def troubled(world: World) -> bool:
    return ";" in world.status()["chain"].detail


def sequences(world: World) -> float:
    return world.metric("inference", "fabstir_inference_requests_processing")
