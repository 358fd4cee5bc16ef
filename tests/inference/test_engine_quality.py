"""What the engine promises under load and with guesses, on the real 135M model."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import psutil
import pytest

from nodeapp.core.errors import Busy
from nodeapp.inference.admission import Load
from nodeapp.inference.speculation import SpeculationCost
from nodeapp.wire.ipc_inference import (
    ChatMessage,
    GenerateRequest,
    Produced,
    Sampling,
    Started,
)
from tests.inference.conftest import chat

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDERS = "".join(
    f"order {1041 + n}, customer {name}, total {n * 17 + 15}.50, status paid\n"
    for n, name in enumerate(("Anna Berg", "Ivan Petrov", "Maria Lopez", "John Smith"))
)
COPIES = (
    f"All orders:\n{ORDERS}\nThe list of all orders again:\n",
    "".join(f"{n}. item number {n}\n" for n in range(1, 13)),
    "".join(f"step {n} of 40 is done\n" for n in range(1, 13)),
)
"""Copied with no near tie on the way, which whoever shares the batch could decide (decoder.py)."""


def text(prompt, *, max_tokens=32, **more):
    return GenerateRequest("r", prompt_text=prompt, max_tokens=max_tokens, **more)


async def cheap_rows(running):
    """Guessing pays as on a quiet machine, whatever this one does just now."""
    await running.ask(text("hi", max_tokens=1))
    running.engine._decoder._cost = SpeculationCost.of_row(0.2)


async def test_guessing_changes_nothing_but_the_number_of_steps(engine_on):
    async with engine_on(has_speculation=False) as running:
        plain = [await running.ask(text(prompt)) for prompt in COPIES]
        steps = running.metric("decode_steps_total")
    async with engine_on() as running:
        await cheap_rows(running)
        before = running.metric("decode_steps_total")
        guessed = [await running.ask(text(prompt)) for prompt in COPIES]
        assert running.metric("draft_tokens_accepted_total") > 15
        assert running.metric("decode_steps_total") - before < 0.9 * steps
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(running.ask(text(prompt))) for prompt in COPIES]
        together = [task.result() for task in asked]
    for one, other, batched in zip(plain, guessed, together, strict=True):
        assert one.ids == other.ids == batched.ids
        assert one.text == other.text
        assert one.finished.completion_tokens == len(other.ids) == 32


async def test_guesses_end_at_a_stop_string_and_at_the_limit(engine_on):
    async with engine_on() as running:
        await cheap_rows(running)
        for limit in (5, 9, 17):
            assert (
                await running.ask(text(COPIES[1], max_tokens=limit))
            ).finished.reason == "length"
        answer = await running.ask(text(COPIES[0], stop=("Maria",)))
        assert answer.finished.reason == "stop"
        assert answer.text.endswith("customer ")
        assert answer.finished.completion_tokens == len(answer.ids)
        await running.until("kv_tokens", 0)


async def test_logprobs_and_fingerprints_come_one_for_each_token(running):
    wanted = Sampling(top_logprobs=3, has_fingerprints=True)
    logprobs, prints, ids = [], [], []
    request = text(COPIES[1], max_tokens=10, sampling=wanted, stop=("never",))
    async with aclosing(running.engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Produced):
                logprobs += event.logprobs
                prints += event.fingerprints
                ids += event.token_ids
    assert [one.chosen.token_id for one in logprobs] == ids
    assert [one.token_ids[0] for one in prints] == ids
    for one, fingerprint in zip(logprobs, prints, strict=True):
        assert one.top[0].logprob == one.chosen.logprob <= 0.0
        assert len(one.top) == 3
        assert len(fingerprint.logits) == 8
        assert list(fingerprint.logits) == sorted(fingerprint.logits, reverse=True)


async def test_cached_tokens_are_told_at_the_end(engine_on):
    async with engine_on() as running:
        first = await running.ask(text(COPIES[0], max_tokens=2, cache_scope="renter"))
        again = await running.ask(text(COPIES[0], max_tokens=2, cache_scope="renter"))
    assert first.finished.cached_tokens == 0
    assert again.finished.cached_tokens == first.started.prompt_tokens - 1


async def test_a_declared_system_prompt_is_shared_by_all_renters(engine_on):
    system = "You are the assistant of a small library. " * 8

    def asked(question, scope):
        messages = (ChatMessage("system", system), ChatMessage("user", question))
        return GenerateRequest("r", messages=messages, max_tokens=2, cache_scope=scope)

    async with engine_on(public_prefixes=(system,)) as running:
        await running.ask(asked("Who wrote Emma?", "one"))
        other = await running.ask(asked("Who wrote Dracula?", "two"))
        assert 64 < other.finished.cached_tokens < other.started.prompt_tokens - 4
    async with engine_on() as running:
        await running.ask(asked("Who wrote Emma?", "one"))
        other = await running.ask(asked("Who wrote Dracula?", "two"))
        assert other.finished.cached_tokens == 0


async def test_requests_that_come_together_share_the_prefix_that_is_being_computed(engine_on):
    prompt = COPIES[0] * 2
    async with engine_on() as running:
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(
                    running.ask(text(f"{prompt}{n}", max_tokens=2, cache_scope="renter"))
                )
                for n in range(4)
            ]
        answers = [task.result() for task in asked]
        total = sum(answer.started.prompt_tokens for answer in answers)
        cached = sorted(answer.finished.cached_tokens for answer in answers)
        assert cached[0] == 0
        assert cached[1] > 0.8 * answers[0].started.prompt_tokens
        assert running.metric("decode_rows_total") < 0.5 * total


async def test_a_storm_of_200_cancels_leaves_no_cells(engine_on):
    async with engine_on(queue_requests=250, has_speculation=False) as running:

        async def leave(number):
            request = text(f"{number} {COPIES[1]}", max_tokens=200)
            async with aclosing(running.engine.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Started) and number % 8:
                        return
                    if isinstance(event, Produced):
                        return
            raise AssertionError(f"request {number} ended by itself")

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(leave(number))
        assert running.engine.open_requests == 0
        await running.until("requests_processing", 0)
        await running.until("kv_tokens", 0)
        assert running.metric("requests_deferred") == 0
        answer = await running.ask(text(COPIES[1], max_tokens=4))
        assert len(answer.ids) == 4


async def test_what_would_wait_too_long_is_refused_with_the_time(engine_on):
    async with engine_on(max_sequences=1, queue_seconds=5.0) as running:
        decoder = running.engine._decoder
        busy = Load(2, 1, 0, 0.0, 0.5, 100.0)
        assert running.engine.wait_seconds(10) == 0.0
        decoder.load = busy
        with pytest.raises(Busy, match=r"would take 150 s, limit 5 s") as caught:
            await running.ask(chat("hi", max_tokens=2))
        assert caught.value.retry_after_seconds == 145.0
        assert running.engine.open_requests == 0
        decoder.load = Load(0, 1, 0, 0.0, 0.5, 100.0)
        assert (await running.ask(chat("hi", max_tokens=2))).ids


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_memory_stays_flat_over_many_requests(engine_on):
    """Bounded: 600 short requests of five renters in five waves, the first two to warm up."""
    process = psutil.Process()
    sizes = []
    async with engine_on(queue_requests=64) as running:
        for wave in range(5):
            for group in range(15):
                async with asyncio.TaskGroup() as tasks:
                    for number in range(8):
                        scope = f"renter {number % 5}"
                        words = f"{wave} {group} {number} {COPIES[number % 3]}"
                        request = text(
                            words,
                            max_tokens=6 + number,
                            cache_scope=scope,
                            renter=scope,
                            sampling=Sampling(temperature=0.7 * (number % 2), seed=number),
                        )
                        tasks.create_task(running.ask(request))
            sizes.append(process.memory_info().rss)
            assert running.metric("kv_tokens") <= 2048
    assert sizes[-1] - sizes[1] < 8 << 20


NOTES = " ".join(f"Room {n} of the old house has {n + 2} windows." for n in range(1, 26))


async def test_a_prefix_that_was_parked_comes_back_bit_for_bit(engine_on):
    other = " ".join(f"The {n}th ship carries {n * 3} sails." for n in range(1, 41))
    async with engine_on(kv_tokens=8192, has_speculation=False) as running:
        first = await running.ask(text(NOTES, cache_scope="a"))
        for number in range(2):
            await running.ask(text(f"{number} {other}", cache_scope="b", max_tokens=2))
        async with asyncio.timeout(10):
            while running.metric("parked_tokens") < first.started.prompt_tokens:
                await asyncio.sleep(0.005)
        stranger = await running.ask(text(NOTES, cache_scope="b"))
        assert stranger.finished.cached_tokens < 64
        again = await running.ask(text(NOTES, cache_scope="a"))
        assert again.finished.cached_tokens == first.started.prompt_tokens - 1
        assert again.ids == first.ids == stranger.ids


async def test_what_cannot_be_restored_is_computed_again(engine_on, monkeypatch):
    other = " ".join(f"The {n}th ship carries {n * 3} sails." for n in range(1, 41))
    async with engine_on(kv_tokens=8192, has_speculation=False) as running:
        first = await running.ask(text(NOTES, cache_scope="a"))
        for number in range(2):
            await running.ask(text(f"{number} {other}", cache_scope="b", max_tokens=2))
        asked = []
        monkeypatch.setattr(
            running.engine._model, "restore", lambda slot, _saved: bool(asked.append(slot))
        )
        again = await running.ask(text(NOTES, cache_scope="a"))
        assert len(asked) == 1
        assert again.ids == first.ids
        assert again.finished.cached_tokens == 0
