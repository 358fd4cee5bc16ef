"""Answers that tick together, and the few that need not."""

import asyncio

from nodeapp.p2p.beat import FEW, Beat


def crowded(period, answers=FEW + 1):
    beat = Beat(period)
    for _ in range(answers):
        beat.enter()
    return beat


async def test_many_answers_go_on_in_the_same_turn_of_the_loop():
    beat = crowded(0.02)
    rests = [beat.rest(0.0) for _ in range(8)]
    assert beat.resting == 8
    async with asyncio.timeout(5):
        await rests[3]
    assert all(rest.done() for rest in rests)
    assert beat.resting == 0


async def test_an_answer_alone_does_not_wait_when_its_last_batch_is_a_period_ago():
    beat = crowded(0.05, answers=FEW)
    now = asyncio.get_running_loop().time()
    assert beat.rest(now - 0.06) is None
    rest = beat.rest(now - 0.01)
    assert rest is not None
    assert beat.resting == 0
    async with asyncio.timeout(5):
        await rest
    assert asyncio.get_running_loop().time() - now >= 0.035


async def test_the_pace_of_a_crowd_ends_with_the_crowd():
    beat = crowded(60.0)
    assert beat.rest(0.0) is not None
    beat.leave()
    assert beat.rest(asyncio.get_running_loop().time() - 61) is None


async def test_a_period_of_zero_never_waits():
    assert crowded(0.0).rest(asyncio.get_running_loop().time()) is None


async def test_an_answer_that_is_cancelled_while_it_rests_disturbs_no_other():
    beat = crowded(0.02)

    async def rest():
        await beat.rest(0.0)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(rest())
        tasks.create_task(rest())
        await asyncio.sleep(0)
        first.cancel()
    assert beat.resting == 0
