"""The engine on the real 135M model."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from nodeapp.core.errors import Busy, InvalidRequest, NotFound, TooLarge, Unavailable
from nodeapp.inference.llama import LlamaModel, LoadOptions
from nodeapp.wire.ipc_inference import (
    ChatMessage,
    Finished,
    GenerateRequest,
    Produced,
    Sampling,
    Started,
)
from tests.inference.conftest import chat

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTIONS = (
    "What is the capital of France?",
    "Count to ten.",
    "Write a haiku about the sea.",
    "Name three animals.",
)
LONG = "Tell me a very long story about dragons, knights and a castle by the sea."


async def test_an_answer_comes_in_order_and_is_counted(engine_on):
    async with engine_on() as running:
        answer = await running.ask(chat("Name three animals.", max_tokens=40))
    assert answer.started.context_length == 1024
    assert answer.started.prompt_tokens > 10
    assert answer.finished == Finished("stop", len(answer.ids))
    assert "2. " in answer.text
    assert "<|im_end|>" not in answer.text
    assert running.metric("tokens_delivered_total") == len(answer.ids)


# Continuations with a wide margin: what shares a batch may tip a near tie (see decoder.py).
ROWS = (
    " ".join(str(number) for number in range(1, 21)),
    "A B C D E F G H I J K L M A B C D E F G H I J K L M A B C D E",
    "red green blue red green blue red green blue red green blue red",
    "January February March April May June July August January February March April",
)


async def continuation(running, row, **more):
    ids = running.engine._model.tokenise(row, add_special=False)
    request = GenerateRequest("r", prompt_token_ids=tuple(ids), **({"max_tokens": 12} | more))
    return (await running.ask(request)).ids


async def test_greedy_alone_equals_greedy_batched(engine_on):
    async with engine_on(prefill_chunk_tokens=16) as running:
        alone = [await continuation(running, row) for row in ROWS]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(continuation(running, row)) for row in ROWS]
        assert [task.result() for task in asked] == alone
        assert running.metric("decode_rows_total") > running.metric("decode_steps_total")


async def test_a_resumed_request_goes_on_where_it_was(running):
    whole = await continuation(running, ROWS[0])
    first = tuple(whole[:5])
    rest = await continuation(running, ROWS[0], continue_token_ids=first, max_tokens=7)
    assert [*first, *rest] == whole
    asked = chat(QUESTIONS[0], max_tokens=3)
    resumed = chat(QUESTIONS[0], max_tokens=3, continue_token_ids=(504, 3575, 282))
    assert (await running.ask(asked)).started == (await running.ask(resumed)).started


async def test_the_prefix_of_the_same_scope_is_not_computed_again(engine_on):
    async with engine_on() as running:
        first = await running.ask(chat(QUESTIONS[0], max_tokens=4, cache_scope="renter"))
        again = await running.ask(chat(QUESTIONS[0], max_tokens=4, cache_scope="renter"))
        cached = running.metric("prompt_tokens_cached_total")
        await running.ask(chat(QUESTIONS[0], max_tokens=4, cache_scope="other"))
        assert running.metric("prompt_tokens_cached_total") == cached
    assert again.started == first.started
    assert cached == first.started.prompt_tokens - 1


async def test_leaving_the_iterator_frees_the_sequence(engine_on):
    async with engine_on() as running:
        async with aclosing(running.engine.generate(chat(LONG, max_tokens=900))) as events:
            async for event in events:
                if isinstance(event, Produced):
                    break
        assert running.engine.open_requests == 0
        await running.until("requests_processing", 0)
        assert running.metric("kv_tokens") == 0
        assert running.metric("tokens_predicted_total") < 100


async def test_a_slow_reader_pauses_only_itself_and_is_ended(engine_on):
    async with engine_on(slow_reader_seconds=0.5) as running:
        slow = running.engine.generate(chat(LONG, max_tokens=900))
        async with aclosing(slow):
            assert isinstance(await anext(slow), Started)
            quick = await running.ask(chat(QUESTIONS[3], max_tokens=40))
            assert quick.finished.reason in {"stop", "length"}
            await running.until("requests_processing", 0)
            rest = [event async for event in slow]
        delivered = sum(len(event.token_ids) for event in rest[:-1])
        assert rest[-1].reason == "cancelled"
        assert "nothing was read" in rest[-1].detail
        assert rest[-1].completion_tokens == delivered <= 40


async def test_a_reader_that_catches_up_gets_everything(engine_on):
    async with engine_on() as running:
        reference = await running.ask(chat(LONG, max_tokens=44))
        slow = running.engine.generate(chat(LONG, max_tokens=44))
        async with aclosing(slow):
            await anext(slow)
            await running.until("tokens_predicted_total", 44 + 32)
            ids = [
                i async for event in slow if isinstance(event, Produced) for i in event.token_ids
            ]
        assert ids == reference.ids


async def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(engine_on):
    async with engine_on(context_length=256) as running:
        with pytest.raises(TooLarge, match=r"prompt of \d{3,} tokens does not fit .* 256 tokens"):
            await running.ask(chat("word " * 400))
        with pytest.raises(TooLarge, match="prompt of 256 tokens"):
            await running.ask(GenerateRequest("r", prompt_token_ids=(5,) * 256))
        edge = await running.ask(GenerateRequest("r", prompt_token_ids=(5,) * 255, max_tokens=9))
        assert edge.finished.completion_tokens <= 1


async def test_max_tokens_is_cut_to_the_room_that_is_left(engine_on):
    async with engine_on(context_length=256) as running:
        answer = await running.ask(chat("word " * 200, max_tokens=1000))
    assert answer.started.prompt_tokens + answer.finished.completion_tokens <= 256


BAD = [
    (GenerateRequest("r"), InvalidRequest, "empty prompt"),
    (chat(""), InvalidRequest, "every message is blank"),
    (chat("  \n\t "), InvalidRequest, "every message is blank"),
    (chat("a \ud800 b"), InvalidRequest, "lone surrogate at character 2"),
    (chat("hi", prompt_token_ids=(1,)), InvalidRequest, "one of them"),
    (GenerateRequest("r", prompt_token_ids=(49152,)), InvalidRequest, "49152"),
    (chat("hi", continue_token_ids=(10**6,)), InvalidRequest, "vocabulary"),
    (chat("hi", model_id="0x" + "00" * 32), NotFound, "not served"),
    (
        GenerateRequest("r", messages=(ChatMessage("user", "a" * (1 << 20)),) * 3),
        TooLarge,
        "characters",
    ),
]


async def test_a_bad_request_is_named_and_costs_nothing(running):
    for request, error, text in BAD:
        with pytest.raises(error, match=text):
            await running.ask(request)
    assert running.engine.open_requests == 0


async def test_nul_and_odd_text_are_just_text(running):
    for text in ("a\x00b", "\ufffe\ufdd0 hm", "👩‍👩‍👧‍👦\u202e\x1b[2J"):
        answer = await running.ask(chat(text, max_tokens=3))
        assert answer.finished.reason in ("stop", "length")


async def test_a_stop_string_ends_the_answer_before_itself(running):
    answer = await running.ask(chat("Name three animals.", max_tokens=40, stop=("2.",)))
    assert answer.finished == Finished("stop", len(answer.ids))
    assert "1." in answer.text
    assert "2" not in answer.text


async def test_one_seed_is_one_answer(running):
    texts = [
        (
            await running.ask(
                chat(LONG, max_tokens=8, sampling=Sampling(temperature=1.5, seed=seed))
            )
        ).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_too_many_open_requests_are_busy(engine_on):
    async with engine_on(max_sequences=1, queue_requests=1) as running:
        streams = [running.engine.generate(chat(LONG, max_tokens=500)) for _ in range(2)]
        async with aclosing(streams[0]), aclosing(streams[1]):
            for stream in streams:
                await anext(stream)
            with pytest.raises(Busy, match="limit 2") as caught:
                await running.ask(chat("hi"))
            assert caught.value.retry_after_seconds > 0
        await running.ask(chat("hi", max_tokens=2))


async def test_more_requests_than_sequences_all_finish(engine_on):
    async with engine_on(max_sequences=2, queue_requests=16) as running:
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(running.ask(chat(f"Say {n}.", max_tokens=4 + n % 3)))
                for n in range(6)
            ]
        for n, task in enumerate(asked):
            answer = task.result()
            assert answer.finished.completion_tokens == len(answer.ids) <= 4 + n % 3
        await running.until("kv_tokens", 0)


def decode_threads():
    return [thread for thread in threading.enumerate() if thread.name == "decode"]


async def test_stop_ends_open_requests_as_unavailable_and_leaves_no_thread(engine_on):
    before = decode_threads()
    async with engine_on() as running:
        stream = running.engine.generate(chat(LONG, max_tokens=900))
        async with aclosing(stream):
            await anext(stream)
            await running.engine.stop()
            with pytest.raises(Unavailable):
                async for _ in stream:
                    pass
        with pytest.raises(Unavailable):
            await running.ask(chat("hi"))
        assert await running.engine.wait_failed() == ""
    assert decode_threads() == before


async def test_waiting_for_idle_lets_open_requests_finish(engine_on):
    async with engine_on() as running:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(running.ask(chat(QUESTIONS[3], max_tokens=40)))
            async with asyncio.timeout(10):
                while not running.engine.open_requests:
                    await asyncio.sleep(0.002)
                await running.engine.wait_idle()
        assert asked.result().finished.reason == "stop"
        with pytest.raises(Unavailable):
            await running.ask(chat("hi"))


async def test_a_file_llama_refuses_is_an_invalid_request(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InvalidRequest, match=r"refuses bad\.gguf"):
        LlamaModel(LoadOptions(path, 256, 2, 64, 1, 0))


async def test_a_model_is_freed_only_after_the_text_that_is_being_tokenised(model_path):
    model = LlamaModel(LoadOptions(model_path, 256, 2, 64, 1, 0))
    text = " " * 300_000
    whole = model.tokenise(text, add_special=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(asyncio.to_thread(model.tokenise, text, add_special=False))
        while not model._readers and not reading.done():
            await asyncio.sleep(0.001)
        assert not reading.done()
        await asyncio.to_thread(model.close)
    assert reading.result() == whole
    with pytest.raises(Unavailable, match="unloaded"):
        model.tokenise("x", add_special=False)
