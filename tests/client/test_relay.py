"""The relay against a scripted engine and renter: pace, order, restarts, cancel."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from nodeapp.core.errors import PaymentRequired, Unavailable, leaves
from nodeapp.p2p import relay as relay_module
from nodeapp.p2p.beat import FEW, Beat
from nodeapp.p2p.relay import Relay, RelaySettings, begin_answer
from nodeapp.wire.envelope import ChatMessage, GenerateCommand, SamplingChoice
from nodeapp.wire.ipc_chain import Authorised
from tests.fakes.paid_session import JOB, RENTER, request_id
from tests.fakes.relay_ends import CountingChain, RenterStream, ScriptedEngine

COMMAND = GenerateCommand(
    request_id=request_id(1),
    model_id="0x" + "ab" * 32,
    messages=(ChatMessage("user", "hello"),),
    max_tokens=50,
    sampling=SamplingChoice(0.0, 0.0, 0, 0.0, 3),
    stop=("END",),
)


class Talk:
    """One relay under way; `task` is what the conversation would await."""

    def __init__(
        self, lives, *, window=8, tokens=50, piece=1, receipt_seconds=10.0, hold=None, beat=None
    ):
        self.chain = CountingChain()
        self.stream = RenterStream(self.chain)
        self.engine = ScriptedEngine(list(lives), piece, hold)
        self.first_tokens = 0
        settings = RelaySettings(window, beat or Beat(0.001), receipt_seconds)
        self.relay = Relay(self.stream, self.chain, self.engine, settings, self.note)
        authorised = Authorised(
            max_tokens=tokens,
            first_token=0,
            acknowledged=0,
            running_hash=bytes(32),
            delivered_ids=(),
        )
        self.answer = begin_answer(JOB, COMMAND, authorised, RENTER, window)

    def note(self):
        self.first_tokens += 1

    def acknowledge(self, tokens=None):
        count = len(self.stream.received) if tokens is None else tokens
        self.relay.acknowledge(self.answer, count)

    @asynccontextmanager
    async def running(self):
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            self.task = tasks.create_task(self.relay.run(self.answer))
            yield self

    async def listen(self):
        """A renter that acknowledges whatever comes, to the end."""
        while not self.stream.ends or self.answer.delivery.acknowledged < len(self.stream.received):
            await self.stream.arrived.wait()
            self.stream.arrived.clear()
            self.acknowledge()


async def test_everything_is_journalled_sent_and_acknowledged():
    async with Talk([50]).running() as talk:
        await talk.listen()
    assert talk.stream.received == talk.chain.journalled == list(range(50))
    assert talk.stream.text == "".join(f"{n} " for n in range(50))
    (end,) = talk.stream.ends
    assert (end.finish_reason, end.prompt_tokens, end.completion_tokens) == ("length", 11, 50)
    assert (talk.first_tokens, talk.engine.closed) == (1, 1)


async def test_the_stream_pauses_at_the_window():
    async with Talk([50]).running() as talk:
        await talk.stream.until(8)
        while not talk.answer.delivery.finish_reason:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(talk.stream.received) == len(talk.chain.journalled) == 8
        talk.acknowledge(5)
        await talk.stream.until(13)
        assert len(talk.chain.journalled) == 13
        await talk.listen()
    assert max(talk.stream.batches) <= 8


async def test_a_session_that_ends_on_chain_stops_the_engine_and_no_more_is_sent():
    """The conversation tells the renter what this raises."""
    talk = Talk([50], hold=asyncio.Event())
    told: list[str] = []
    try:
        async with talk.running():
            await talk.stream.until(8)
            talk.chain.refusal = PaymentRequired("session 7 is completed; open a new session")
            talk.acknowledge(8)
    except* PaymentRequired as group:
        told += [error.message for error in leaves(group)]
    assert told == ["session 7 is completed; open a new session"]
    assert talk.stream.received == talk.chain.journalled == list(range(8))
    assert (talk.engine.closed, talk.stream.ends) == (1, [])


@pytest.mark.parametrize("window", [3, 8, 300])
async def test_a_piece_larger_than_the_window_is_sent_in_parts(window):
    async with Talk([600], window=window, tokens=600, piece=600).running() as talk:
        await talk.listen()
    assert talk.stream.received == list(range(600))
    assert talk.stream.text == "".join(f"{n} " for n in range(600))
    assert max(talk.stream.batches) <= min(window, relay_module.MAX_BATCH_TOKENS)


async def test_an_answer_goes_on_after_the_engine_came_back():
    talk = Talk([20, 0, 10, 50])
    async with talk.running():
        await talk.listen()
    assert talk.stream.received == list(range(50))
    assert [len(ask.continue_token_ids) for ask in talk.engine.asked] == [0, 20, 20, 30]
    assert [ask.max_tokens for ask in talk.engine.asked] == [50, 30, 30, 20]
    assert (talk.first_tokens, len(talk.stream.ends)) == (1, 1)


async def test_a_long_answer_still_survives_a_restart_late_in_it(monkeypatch):
    """The time to come back counts from the loss, not from the beginning of the answer."""
    monkeypatch.setattr(relay_module, "ENGINE_RESTART_SECONDS", 0.5)
    loop, hold = asyncio.get_running_loop(), asyncio.Event()
    talk, began = Talk([20, 0, 50], hold=hold), loop.time()
    async with talk.running() as running:
        await running.stream.until(8)
        running.acknowledge()
        # The engine takes its time, and is lost when longer has passed than it may be away.
        loop.call_at(began + 0.6, hold.set)
        await hold.wait()
        assert loop.time() - began > relay_module.ENGINE_RESTART_SECONDS
        await running.listen()
    assert talk.stream.received == list(range(50))


async def test_an_engine_that_stays_away_ends_the_stream_not_the_request(monkeypatch):
    monkeypatch.setattr(relay_module, "ENGINE_RESTART_SECONDS", 0.3)
    talk = Talk([5, *[0] * 50])

    async def renter():
        async with talk.running():
            await talk.stream.until(5)
            talk.acknowledge()

    with pytest.raises(ExceptionGroup) as caught:
        await renter()
    assert isinstance(leaves(caught.value)[0], Unavailable)
    assert talk.stream.ends == []


async def test_a_cancel_stops_the_engine_and_drops_what_was_not_sent():
    hold = asyncio.Event()
    async with Talk([30], hold=hold).running() as talk:
        await talk.stream.until(8)
        talk.relay.cancel(talk.answer)
        end = await talk.stream.until_end()
        assert (end.finish_reason, end.completion_tokens) == ("cancelled", 8)
        assert len(talk.chain.journalled) == 8
        talk.acknowledge()
        await talk.task
    assert talk.engine.closed == 1
    assert talk.answer.delivery.is_over


async def test_a_cancel_after_the_engine_has_finished_says_so_too():
    async with Talk([50]).running() as talk:
        await talk.stream.until(8)
        while not talk.answer.delivery.finish_reason:
            await asyncio.sleep(0)
        talk.relay.cancel(talk.answer)
        end = await talk.stream.until_end()
        talk.acknowledge()
    assert (end.finish_reason, end.completion_tokens) == ("cancelled", 8)


async def test_a_renter_that_owes_receipts_for_too_long_is_given_up():
    talk = Talk([50], receipt_seconds=0.1)
    with pytest.raises(ExceptionGroup) as caught:
        async with talk.running():
            await talk.stream.until(8)
    (error,) = leaves(caught.value)
    assert error.message == "no receipt for 8 tokens inside 0.1 s"
    assert len(talk.chain.journalled) == 8


async def test_a_slow_engine_has_no_receipt_deadline():
    loop, hold = asyncio.get_running_loop(), asyncio.Event()
    async with Talk([50], window=100, receipt_seconds=0.1, hold=hold).running() as talk:
        await talk.stream.until(50)
        talk.acknowledge()
        acknowledged = loop.time()
        loop.call_at(acknowledged + 0.15, hold.set)
        await hold.wait()
        assert loop.time() - acknowledged > 0.1, "the deadline of a receipt that is owed"
        await talk.listen()
    assert talk.stream.ends[0].finish_reason == "length"


async def test_an_answer_taken_up_again_does_not_count_a_first_token():
    talk = Talk([50], tokens=50)
    talk.answer = begin_answer(
        JOB,
        COMMAND,
        Authorised(
            max_tokens=50,
            first_token=0,
            acknowledged=30,
            running_hash=bytes(32),
            delivered_ids=tuple(range(30)),
        ),
        RENTER,
        8,
    )
    talk.chain.journalled = list(range(30))
    talk.stream.received = list(range(30))
    async with talk.running():
        await talk.listen()
    assert talk.stream.received == list(range(50))
    assert talk.engine.asked[0].continue_token_ids == tuple(range(30))
    assert (talk.first_tokens, talk.stream.ends[0].completion_tokens) == (0, 50)


async def test_an_answer_that_was_delivered_whole_only_needs_its_end():
    talk = Talk([], tokens=3)
    talk.answer = begin_answer(
        JOB,
        COMMAND,
        Authorised(
            max_tokens=3,
            first_token=0,
            acknowledged=3,
            running_hash=bytes(32),
            delivered_ids=(0, 1, 2),
        ),
        RENTER,
        8,
    )
    async with talk.running():
        end = await talk.stream.until_end()
    assert (end.finish_reason, end.completion_tokens, talk.engine.asked) == ("length", 3, [])


async def test_the_first_token_leaves_at_once_and_the_last_ones_do_not_wait_for_the_beat():
    """However many answers there are: only what is between gathers."""
    beat = Beat(60.0)
    for _ in range(FEW + 1):
        beat.enter()
    hold = asyncio.Event()
    talk = Talk([30], window=100, tokens=30, hold=hold, beat=beat)
    talk.engine.after_first = asyncio.Event()
    async with talk.running():
        await talk.stream.until(1)
        talk.engine.after_first.set()
        while talk.answer.delivery.made < 30 or not beat.resting:
            await asyncio.sleep(0)
        assert talk.stream.received == [0]
        hold.set()
        await talk.listen()
    assert talk.stream.batches == [1, 29]


async def test_a_cancel_does_not_wait_for_the_beat():
    beat = Beat(60.0)
    for _ in range(FEW + 1):
        beat.enter()
    talk = Talk([30], window=100, hold=asyncio.Event(), beat=beat)
    talk.engine.after_first = asyncio.Event()
    async with talk.running():
        await talk.stream.until(1)
        talk.engine.after_first.set()
        while not beat.resting:
            await asyncio.sleep(0)
        talk.relay.cancel(talk.answer)
        end = await talk.stream.until_end()
        talk.acknowledge()
    assert (end.finish_reason, end.completion_tokens) == ("cancelled", 1)
