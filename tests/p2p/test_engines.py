"""The replicas as one engine: who is asked, who is passed over, what they offer together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest
from aiohttp import web

from nodeapp.core.errors import Busy, InvalidRequest, Unavailable
from nodeapp.p2p.engines import Engines
from nodeapp.service.clock import SystemClock
from nodeapp.service.lifecycle import Shell, listen_unix
from nodeapp.service.metrics import Metrics
from nodeapp.service.paths import Paths
from nodeapp.service.replicas import replica_process
from nodeapp.service.server import errors_to_replies, query, stream_endpoint
from nodeapp.service.settings import NodeSettings
from nodeapp.wire.ipc_inference import (
    ChatMessage,
    Finished,
    GenerateRequest,
    ModelFacts,
    Models,
    ModelState,
    Produced,
    Started,
)

A, B = "0x" + "aa" * 32, "0x" + "bb" * 32


class Replica:
    """An inference process by script: `failure` before or, after `tokens`, in an answer."""

    def __init__(self, name):
        self.name = name
        self.model_id = A
        self.slots = 4
        self.tokens = 3
        self.failure = None
        self.hold = None
        self.asked = []

    async def generate(self, request):
        self.asked.append(request.request_id)
        if self.failure is not None and not self.tokens:
            raise self.failure
        yield Started(prompt_tokens=5, context_length=512)
        for token in range(self.tokens):
            yield Produced((token,), f"{self.name} ")
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        yield Finished("stop", self.tokens)

    async def state(self):
        phase = "serving" if self.slots else "loading"
        return ModelState(f"{self.model_id[2:4]}.gguf", phase, self.name, slots=self.slots)

    async def facts(self):
        return Models((ModelFacts(self.model_id, "r", "f", "", 1, "llama", "Q4", 512, 512, 100),))

    async def serve(self, paths):
        app = web.Application(middlewares=[errors_to_replies])
        app.router.add_post("/v1/generate", stream_endpoint(GenerateRequest, self.generate))
        app.router.add_get("/v1/models/state", query(self.state))
        app.router.add_get("/v1/models/facts", query(self.facts))
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        await listen_unix(self.runner, paths.socket(self.name))


class Machine:
    """Some replicas and the Engines over them."""

    def __init__(self, directory, count):
        self.paths = Paths(directory, directory, directory)
        self.replicas = [Replica(replica_process(index)) for index in range(count)]
        node = NodeSettings(processes=tuple(one.name for one in self.replicas))
        self.metrics = Metrics("p2p")
        self.engines = Engines(Shell("p2p", node, self.paths, self.metrics, SystemClock()))

    async def ask(self, name, *, renter="r", question="hello", model_id=""):
        """Who answered, by the text of the answer."""
        request = asked(name, renter, question, model_id)
        async with aclosing(self.engines.generate(request)) as events:
            return "".join([event.text async for event in events if isinstance(event, Produced)])

    def given(self):
        return [len(replica.asked) for replica in self.replicas]


def asked(name, renter="r", question="hello", model_id=""):
    messages = (ChatMessage("system", "be brief"), ChatMessage("user", question))
    return GenerateRequest(
        name, model_id, messages=messages, cache_scope=renter, renter=renter, max_tokens=9
    )


@pytest.fixture
async def make(tmp_path) -> AsyncIterator:
    async with AsyncExitStack() as stack:

        async def machine(count=2):
            made = Machine(tmp_path, count)
            for replica in made.replicas:
                await replica.serve(made.paths)
                stack.push_async_callback(replica.runner.cleanup)
            await stack.enter_async_context(made.engines)
            await made.engines.model_state()
            return made

        yield machine


async def test_two_renters_at_once_are_answered_by_two_replicas(make):
    machine = await make()
    machine.replicas[0].hold = machine.replicas[1].hold = hold = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(machine.ask(name, renter=name)) for name in ("one", "two")]
        while sum(machine.given()) < 2:
            await asyncio.sleep(0)
        text = machine.metrics.render().decode()
        assert 'fabstir_p2p_engine_open_requests{process="inference"} 1.0' in text
        assert 'fabstir_p2p_engine_open_requests{process="inference-1"} 1.0' in text
        hold.set()
    assert {task.result() for task in answers} == {"inference " * 3, "inference-1 " * 3}
    assert 'engine_open_requests{process="inference"} 0.0' in machine.metrics.render().decode()


async def test_a_conversation_stays_where_it_began(make):
    machine = await make(3)
    for renter in ("one", "two", "three"):
        homes = {await machine.ask(f"{renter}-{turn}", renter=renter) for turn in range(4)}
        assert len(homes) == 1
    assert machine.given() == [4, 4, 4]


async def test_two_conversations_of_one_renter_may_live_apart(make):
    machine = await make()
    first, second = machine.replicas
    first.slots = second.slots = 1
    await machine.engines.model_state()
    first.hold = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(machine.ask("1", question="a"))
        while not first.asked:
            await asyncio.sleep(0)
        assert await machine.ask("2", question="b") == "inference-1 " * 3
        first.hold.set()
    assert await machine.ask("3", question="a") == "inference " * 3
    assert await machine.ask("4", question="b") == "inference-1 " * 3


async def test_who_shares_no_cache_has_no_home(make):
    machine = await make()
    for name in range(4):
        await machine.ask(str(name), renter="")
    assert machine.given() == [2, 2]


async def test_a_replica_that_takes_nothing_is_not_asked(make):
    machine = await make()
    machine.replicas[0].slots = 0
    await machine.engines.model_state()
    for name in range(3):
        await machine.ask(str(name), renter=str(name))
    assert machine.given() == [0, 3]


@pytest.mark.parametrize(
    "failure", [Busy("queue is full", retry_after_seconds=1), Unavailable("loading")]
)
async def test_one_that_refuses_before_it_began_is_passed_over(make, failure):
    machine = await make()
    machine.replicas[0].failure, machine.replicas[0].tokens = failure, 0
    assert await machine.ask("1") == "inference-1 " * 3
    assert machine.given() == [1, 1]


async def test_what_is_wrong_with_the_request_is_told_and_asked_of_one(make):
    machine = await make()
    for replica in machine.replicas:
        replica.failure, replica.tokens = InvalidRequest("too odd"), 0
    with pytest.raises(InvalidRequest, match="too odd"):
        await machine.ask("1")
    assert sum(machine.given()) == 1


async def test_when_all_refuse_the_last_refusal_is_told(make):
    machine = await make()
    for replica in machine.replicas:
        replica.failure, replica.tokens = Busy(f"{replica.name} is full"), 0
    with pytest.raises(Busy, match="inference-1 is full"):
        await machine.ask("1")
    assert machine.given() == [1, 1]


async def test_one_lost_in_mid_answer_ends_the_stream_and_the_next_try_goes_elsewhere(make):
    machine = await make()
    home, other = machine.replicas
    assert await machine.ask("1") == "inference " * 3
    home.failure = Unavailable("engine is gone")
    with pytest.raises(Unavailable, match="engine is gone"):
        await machine.ask("2")
    assert await machine.ask("2") == "inference-1 " * 3
    home.failure = None
    await machine.engines.model_state()
    assert await machine.ask("3") == "inference-1 " * 3
    assert (home.asked, other.asked) == (["1", "2"], ["2", "3"])


async def test_a_dead_process_is_passed_over_and_taken_back_when_it_answers(make):
    machine = await make()
    home = machine.replicas[0]
    await machine.ask("1")
    await home.runner.cleanup()
    assert await machine.ask("2") == "inference-1 " * 3
    state = await machine.engines.model_state()
    assert (state.slots, state.phase) == (4, "serving")
    await home.serve(machine.paths)
    assert (await machine.engines.model_state()).slots == 8
    answers = [await machine.ask(name, renter=name) for name in ("third", "fourth")]
    assert set(answers) == {"inference " * 3, "inference-1 " * 3}


async def test_a_model_is_asked_of_who_serves_it(make):
    machine = await make()
    machine.replicas[1].model_id = B
    offered = {model.model_id for model in (await machine.engines.models()).models}
    assert offered == {A, B}
    assert (await machine.engines.model_state()).name == "aa.gguf, bb.gguf"
    for name in range(3):
        assert await machine.ask(str(name), renter=str(name), model_id=B) == "inference-1 " * 3


async def test_one_process_says_what_it_always_said(make):
    machine = await make(1)
    assert await machine.engines.model_state() == await machine.replicas[0].state()
    assert await machine.engines.models() == await machine.replicas[0].facts()
    machine.replicas[0].slots = 0
    with pytest.raises(Unavailable, match="inference"):
        await machine.engines.models()
    assert await machine.ask("1") == "inference " * 3
    await machine.replicas[0].runner.cleanup()
    for question in (machine.engines.models, machine.engines.model_state):
        with pytest.raises(Unavailable, match="inference is not reachable"):
            await question()
    with pytest.raises(Unavailable, match="inference is not reachable"):
        await machine.ask("2")
