"""What a host may not do to a renter: be paid for tokens nobody asked for."""

import asyncio

import pytest

from nodeapp.core.errors import Busy, InvalidRequest, ProtocolViolation, Unavailable
from nodeapp.evm.accounts import new_wallet
from nodeapp.renter import link as link_module
from nodeapp.renter.answer import Asker, Question, _Progress
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.service.clock import SystemClock
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from tests.client.scripted import ScriptedLink, tokens

HEAD = SessionHead(
    chain_id=31337,
    marketplace="0x" + "11" * 20,
    job_id=7,
    host="0x" + "22" * 20,
    peer_id="12D3KooW",
    model_id="0x" + "33" * 32,
    portal_url="",
    addresses=(),
)


@pytest.fixture
def asker(tmp_path):
    record = SessionRecord.create(tmp_path, HEAD)
    return Asker(None, new_wallet(), record, clock=SystemClock(), report=lambda _: None)


async def test_tokens_beyond_what_was_asked_for_are_neither_kept_nor_acknowledged(asker):
    link = ScriptedLink(tokens(0, range(30)), tokens(30, range(30)), tokens(60, range(30)))
    with pytest.raises(ProtocolViolation, match="more than the 40 tokens"):
        await asker._receive(link, _Progress("ab" * 16, 0.0, 0, 40))
    assert [message["receipt"].tokens for message in link.sent] == [30]
    assert len(asker._record.token_ids) == 30


async def test_exactly_what_was_asked_for_is_acknowledged(asker):
    end = pb.Envelope(end=pb.End(finish_reason="length"))
    link = ScriptedLink(tokens(0, range(30)), tokens(30, range(10)), end)
    assert (await asker._receive(link, _Progress("ab" * 16, 0.0, 0, 40))).finish_reason == "length"
    assert link.sent[-1]["receipt"].tokens == 40


async def test_a_host_cannot_skip_or_change_tokens(asker):
    for second in (tokens(11, range(5)), tokens(5, range(100, 105))):
        link = ScriptedLink(tokens(0, range(10)), second)
        with pytest.raises(InvalidRequest, match=r"skipped tokens|changed tokens"):
            await asker._receive(link, _Progress("ab" * 16, 0.0, 0, 40))


async def test_a_host_cannot_make_the_renter_sleep_for_days(asker, monkeypatch):
    refusal = pb.Error(code="busy", message="come back", retry_after_ms=2**32 - 1)

    async def refuse(_question, _progress):
        raise envelope.error_of(refusal)

    monkeypatch.setattr(asker, "_attempt", refuse)
    async with asyncio.timeout(5):
        with pytest.raises(Busy):
            await asker.ask(Question((("user", "hello"),), 10), patience_seconds=1)


def test_corruption_at_the_host_is_not_taken_for_our_own():
    assert type(envelope.error_of(pb.Error(code="corrupt", message="x"))) is Unavailable


async def test_a_host_that_keeps_talking_cannot_hold_a_finished_answer_open(monkeypatch):
    monkeypatch.setattr(link_module, "READ_SECONDS", 0.2)

    class Chatty:
        async def write_frame(self, _frame):
            pass

        async def read_frame(self, _max_bytes, _deadline):
            await asyncio.sleep(0.01)
            return envelope.encode(pong=pb.Pong(nonce=0))

    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="confirms nothing"):
            await link_module.Link(Chatty()).confirm()
