"""What an answer costs in durable writes and asks of the chain, counted on a running node."""

import asyncio
import math
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from nodeapp.renter.answer import RECEIPT_EVERY_TOKENS
from nodeapp.renter.events import AnswerEnded, TokensReceived
from nodeapp.rpc.chain import ChainClient
from tests.world import World

pytestmark = pytest.mark.timeout(180)
TOKENS = 100


def journal_kinds(world: World, directory: Path) -> Counter[str]:
    """How many records of each kind the chain process has written."""

    async def copy() -> str:
        async with ChainClient(world.paths.socket("chain")) as chain:
            return (await chain.backup(directory)).path

    with closing(sqlite3.connect(asyncio.run(copy()))) as connection:
        return Counter(dict(connection.execute("SELECT kind, count(*) FROM records GROUP BY kind")))


def test_an_answer_writes_no_more_than_its_batches_and_receipts(world, tmp_path):
    renter = world.renter("costs")
    before = journal_kinds(world, tmp_path)
    chat = renter.chat("Tell a long story.", "--max-tokens", TOKENS, "--keep")
    assert chat.finish() == 0, chat.err
    spent = journal_kinds(world, tmp_path)
    spent.subtract(before)
    ended, batches = chat.one(AnswerEnded), len(chat.all(TokensReceived))
    assert ended.tokens == TOKENS
    assert spent["TokensProduced"] == batches <= TOKENS
    assert spent["RenterSentReceipt"] <= math.ceil(TOKENS / RECEIPT_EVERY_TOKENS) + 1
    assert spent["RequestAuthorised"] == spent["RenterAuthenticated"] == 1
    assert spent["RequestEnded"] == 1
    answering = ("TokensProduced", "RenterSentReceipt", "RequestAuthorised", "RequestEnded")
    assert sum(spent[kind] for kind in answering) <= batches + 10
    assert renter.command("close").finish() == 0


def test_what_the_renter_keeps_is_one_line_a_batch(world):
    renter = world.renter("lines")
    chat = renter.chat("Count to thirty.", "--max-tokens", 40)
    assert chat.finish() == 0, chat.err
    ended = chat.one(AnswerEnded)
    lines = (renter.state / f"session-{ended.job_id}.jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + len(chat.all(TokensReceived))


def test_time_to_first_token_is_told_apart_from_connecting(world):
    renter = world.renter("apart")
    chat = renter.chat("Say hello.", "--max-tokens", 5)
    assert chat.finish() == 0, chat.err
    ended = chat.one(AnswerEnded)
    first = chat.all(TokensReceived)[0]
    assert ended.connect_seconds > 0
    assert ended.first_token_seconds == first.seconds > 0
