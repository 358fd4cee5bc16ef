"""ModelHost: what a change does to requests, and what is left when it fails. Far ends faked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeapp.core.errors import Busy, Corrupt, InvalidRequest, Unavailable, leaves
from nodeapp.inference.host import ModelHost, Served
from nodeapp.inference.models import FileIdentity, ModelFile

IDENTITY = FileIdentity(1, 2, 3, 4)


def model(name):
    return ModelFile(Path(f"/m/{name}.gguf"), "", "r", f"{name}.gguf", name)


@dataclass
class FakeEngine:
    name: str
    log: list[str]
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str = ""
    open_requests: int = 2

    async def wait_idle(self):
        self.log.append(f"drain {self.name}")
        await self.idle.wait()

    async def wait_failed(self):
        await self.failed.wait()
        return self.failure

    async def stop(self):
        self.log.append(f"stop {self.name}")
        self.failed.set()


class FakeLoader:
    """`bad_checks` and `bad_loads` name the models that fail there."""

    def __init__(self):
        self.log, self.engines = [], {}
        self.bad_checks, self.bad_loads = set(), set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_damaged = False

    async def check(self, wanted, report):
        self.log.append(f"check {wanted.name}")
        if wanted.name in self.bad_checks:
            raise InvalidRequest(f"{wanted.name} is no model")
        return wanted.name

    async def load(self, wanted, card, report):
        self.log.append(f"load {wanted.name}")
        report(f"loading {wanted.name}, half")
        await self.gate.wait()
        if wanted.name in self.bad_loads:
            raise Unavailable(f"no memory for {wanted.name}")
        engine = self.engines[wanted.name] = FakeEngine(wanted.name, self.log)
        return Served(wanted, card, engine, f"serving {wanted.name}", IDENTITY)

    async def look_again(self, served):
        if self.is_damaged:
            raise Corrupt(f"{served.model.name} changed")


@asynccontextmanager
async def hosting(loader, *, first="a", **more):
    kept = []
    host = ModelHost(loader, remember=kept.append, slots=lambda: 4, **more)
    await host.start(model(first))
    run = asyncio.ensure_future(host.run())
    host.kept, host.runner = kept, run
    try:
        yield host
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_change_drains_frees_loads_and_remembers():
    loader = FakeLoader()
    async with hosting(loader) as host:
        loader.gate.clear()
        host.ask(model("b"))
        await until(lambda: host.state.phase == "draining")
        with pytest.raises(Unavailable, match="2 requests finish first") as caught:
            host.current()
        assert caught.value.retry_after_seconds > 0
        loader.engines["a"].idle.set()
        await until(lambda: host.state.detail == "loading b, half")
        assert host.state.slots == 0
        with pytest.raises(Unavailable, match="loading b"):
            host.current()
        loader.gate.set()
        await until(lambda: host.state.phase == "serving")
        assert (host.current().model.name, host.state.slots) == ("b", 4)
        await until(lambda: host.kept == [model("b")])
    assert loader.log == ["check a", "load a", "check b", "drain a", "stop a", "load b"]


async def test_a_bad_file_is_found_while_the_old_model_serves():
    loader = FakeLoader()
    loader.bad_checks = {"b"}
    async with hosting(loader) as host:
        host.ask(model("b"))
        assert host.current().model.name == "a"
        await until(lambda: host.state.error)
        assert (host.state.phase, host.state.error) == ("serving", "b is no model")
        assert host.current().model.name == "a"
    assert "stop a" not in loader.log
    assert host.kept == []


async def test_a_failed_load_brings_the_former_model_back():
    loader = FakeLoader()
    loader.bad_loads = {"b"}
    async with hosting(loader) as host:
        loader.engines["a"].idle.set()
        host.ask(model("b"))
        await until(lambda: host.state.error and host.state.phase == "serving")
        assert host.current().model.name == "a"
        assert host.state.error == "no memory for b"
        assert not host.runner.done()
    assert loader.log[-3:] == ["stop a", "load b", "load a"]
    assert host.kept == []


async def test_when_nothing_loads_any_more_the_process_still_answers():
    loader = FakeLoader()
    async with hosting(loader) as host:
        loader.bad_loads = {"a", "b"}
        loader.engines["a"].idle.set()
        host.ask(model("b"))
        await until(lambda: host.state.phase == "none")
        with pytest.raises(Unavailable, match="no memory for a"):
            host.current()
        loader.bad_loads = set()
        host.ask(model("c"))
        await until(lambda: host.state.phase == "serving")
        assert host.current().model.name == "c"


async def test_requests_that_do_not_end_are_cut_off_at_the_deadline():
    loader = FakeLoader()
    async with hosting(loader, drain_seconds=0.01) as host:
        host.ask(model("b"))
        await until(lambda: host.state.phase == "serving" and host.state.name == "b.gguf")


async def test_unloading_frees_and_loading_brings_back():
    loader = FakeLoader()
    async with hosting(loader) as host:
        loader.engines["a"].idle.set()
        host.ask(None)
        await until(lambda: host.state.phase == "none")
        with pytest.raises(Unavailable, match="operator unloaded it"):
            host.current()
        host.ask(model("a"))
        await until(lambda: host.state.phase == "serving")


async def test_two_changes_at_once_are_refused():
    loader = FakeLoader()
    async with hosting(loader) as host:
        host.ask(model("b"))
        with pytest.raises(Busy, match="checking b"):
            host.ask(model("c"))


async def test_a_failed_engine_ends_the_process_a_stopped_one_does_not():
    loader = FakeLoader()
    async with hosting(loader) as host:
        loader.engines["a"].idle.set()
        host.ask(model("b"))
        await until(lambda: host.state.phase == "serving" and host.state.name == "b.gguf")
        assert not host.runner.done()
        loader.engines["b"].failure = "llama_decode returned -3"
        loader.engines["b"].failed.set()
        await until(host.runner.done)
        (error,) = leaves(host.runner.exception())
        assert (type(error), error.message) == (Corrupt, "engine: llama_decode returned -3")


async def test_a_served_file_that_changes_ends_the_process():
    loader = FakeLoader()
    async with hosting(loader, look_seconds=0.001) as host:
        loader.is_damaged = True
        await until(host.runner.done)
        assert "a changed" in leaves(host.runner.exception())[0].message


async def test_a_faulty_device_drains_and_frees_the_model_and_says_why():
    loader = FakeLoader()
    async with hosting(loader) as host:
        host.quarantine("gpu 0 faulty: xid 79")
        with pytest.raises(Busy, match="in quarantine: gpu 0 faulty"):
            host.quarantine("gpu 0 faulty: xid 79")
        await until(lambda: host.state.phase == "draining")
        assert host.state.slots == 0
        loader.engines["a"].idle.set()
        await until(lambda: host.state.phase == "none")
        assert host.state.detail == "no model is loaded; gpu 0 faulty: xid 79"
        assert loader.log[-1] == "stop a"
        with pytest.raises(Unavailable, match="xid 79"):
            host.current()
