"""A renter that takes tokens and stays silent."""

import asyncio

import pytest

from nodeapp.core.errors import Unavailable, leaves
from nodeapp.p2p.relay import AHEAD_TOKENS
from tests.client.test_relay import Talk


async def test_the_engine_is_not_kept_busy_for_a_renter_that_acknowledges_nothing():
    async with Talk([5000], tokens=5000).running() as talk:
        await talk.stream.until(8)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert talk.answer.delivery.made <= 8 + AHEAD_TOKENS
        await talk.listen()
    assert talk.stream.received == list(range(5000))


async def test_a_paused_engine_is_let_go_on_cancel():
    async with Talk([5000], tokens=5000).running() as talk:
        await talk.stream.until(8)
        talk.relay.cancel(talk.answer)
        await talk.stream.until_end()
        talk.acknowledge()
    assert (talk.engine.closed, talk.stream.ends[0].finish_reason) == (1, "cancelled")


async def test_repeating_an_old_receipt_does_not_prolong_the_deadline():
    talk = Talk([5000], tokens=5000, receipt_seconds=0.3)
    loop = asyncio.get_running_loop()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the group ends the block
        async with talk.running():
            await talk.stream.until(8)
            talk.acknowledge(3)
            began = loop.time()
            while loop.time() - began < 5:
                talk.acknowledge(3)
                await asyncio.sleep(0.05)
    assert isinstance(leaves(caught.value)[0], Unavailable)
    assert loop.time() - began < 2
