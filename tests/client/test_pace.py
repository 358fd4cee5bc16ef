"""Tokens are acknowledged when whoever asked has taken them, and one batch waits at most."""

import asyncio

from nodeapp.evm.accounts import new_wallet
from nodeapp.renter.answer import Asker, _Progress
from nodeapp.renter.events import TokensReceived
from nodeapp.renter.proxy import Events
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.service.clock import SystemClock
from nodeapp.wire import fabstir_pb2 as pb
from tests.client.scripted import ScriptedLink, tokens

HEAD = SessionHead(31337, "0x" + "11" * 20, 7, "0x" + "22" * 20, "p", "0x" + "33" * 32, "", ())


async def test_a_receipt_waits_until_the_text_before_it_is_taken(tmp_path):
    events = Events(asyncio.Queue())
    record = SessionRecord.create(tmp_path, HEAD)
    asker = Asker(
        None,
        new_wallet(),
        record,
        clock=SystemClock(),
        report=events.report,
        pace=events.pace,
    )
    end = pb.Envelope(end=pb.End(finish_reason="length"))
    link = ScriptedLink(tokens(0, range(20)), tokens(20, range(20)), end)

    def receipts() -> list[int]:
        return [message["receipt"].tokens for message in link.sent]

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(asker._receive(link, _Progress("ab" * 16, 0.0, 0, 40)))
        for before, after in (([], [20]), ([20], [20, 40, 40])):
            event = await events.current.get()
            assert isinstance(event, TokensReceived)
            assert receipts() == before
            assert events.current.empty(), "the next batch is not even read"
            events.current.task_done()
            while receipts() != after:
                await asyncio.sleep(0)
    assert answer.result().finish_reason == "length"
