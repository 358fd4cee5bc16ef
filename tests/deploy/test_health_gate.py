"""The health gate waits for what this machine can give - a loaded model, its GPUs - and no more."""

import asyncio
import contextlib
import xmlrpc.client

import pytest
from aiohttp import web

from nodeapp.core.errors import Unavailable
from nodeapp.rpc.inference import GPUS
from nodeapp.rpc.updater import VERSION
from nodeapp.service.lifecycle import listen_unix
from nodeapp.service.paths import resolve_paths
from nodeapp.service.server import errors_to_replies, query
from nodeapp.service.settings import NodeSettings
from nodeapp.service.supervisord import supervisor_socket
from nodeapp.updater.gate import TreeGate
from nodeapp.wire.ipc import Health, Readiness
from nodeapp.wire.ipc_inference import Gpus
from nodeapp.wire.ipc_updater import VersionView

PROGRAMS = ("s5", "prover", "inference", "chain", "chain-two", "p2p", "updater", "watchdog")


class Tree:
    """The far end: supervisord and its programs, as far as the gate asks them."""

    def __init__(self, paths):
        self.paths = paths
        self.programs = PROGRAMS
        self.waits = dict.fromkeys(PROGRAMS, "")
        self.gpus: int | None = 2

    async def supervisor(self, _request):
        found = [
            {"name": name, "statename": "RUNNING", "pid": 7, "description": "", "exitstatus": 0}
            for name in self.programs
        ]
        body = xmlrpc.client.dumps((found,), methodresponse=True)
        return web.Response(body=body.encode(), content_type="text/xml")

    def routes(self, name):
        async def healthz():
            return Health(name, healthy=True, detail="ok")

        async def readyz():
            return Readiness(name, not self.waits[name], self.waits[name], 7, 1.0)

        async def version():
            return VersionView(version="0.2.0", python="", environment="", slot="")

        async def gpus():
            if self.gpus is None:
                raise Unavailable("the gpu driver and its library have different versions")
            return Gpus(self.gpus)

        asked = {"/healthz": healthz, "/readyz": readyz, VERSION: version, GPUS: gpus}
        return [web.get(path, query(handler)) for path, handler in asked.items()]


@pytest.fixture
async def tree(tmp_path):
    paths = resolve_paths(NodeSettings(state_dir=str(tmp_path)))
    paths.run.mkdir(parents=True, exist_ok=True)
    made = Tree(paths)
    served = {supervisor_socket(paths): [web.post("/RPC2", made.supervisor)]}
    served |= {paths.socket(name): made.routes(name) for name in PROGRAMS}
    async with contextlib.AsyncExitStack() as stack:
        for path, routes in served.items():
            app = web.Application(middlewares=[errors_to_replies])
            app.router.add_routes(routes)
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await listen_unix(runner, path)
        yield made


def gate(tree, seconds=0.5):
    return TreeGate(tree.paths, seconds, 0.0)


async def test_a_tree_that_is_ready_passes(tree):
    assert await gate(tree, 10.0).failure("0.2.0", 2) == ""


@pytest.mark.parametrize("name", ["inference", "s5", "prover", "updater", "watchdog"])
async def test_a_program_that_is_still_starting_is_not_healthy(tree, name):
    """A model that cannot be loaded never is."""
    tree.waits[name] = "checking model.gguf"
    assert await gate(tree).failure("0.2.0", 0) == f"{name} is not ready: checking model.gguf"


@pytest.mark.parametrize("name", ["chain", "chain-two", "p2p"])
async def test_what_waits_for_the_world_outside_is_healthy_when_it_answers(tree, name):
    tree.waits[name] = "no endpoint answers"
    assert await gate(tree, 10.0).failure("0.2.0", 2) == ""


async def test_a_model_may_take_the_gates_time_to_load(tree):
    tree.waits["inference"] = "loading"
    async with asyncio.TaskGroup() as tasks:
        judged = tasks.create_task(gate(tree, 20.0).failure("0.2.0", 2))
        await asyncio.sleep(0)
        tree.waits["inference"] = ""
    assert judged.result() == ""


async def test_fewer_gpus_than_before_the_restart_are_not_healthy(tree):
    tree.gpus = 1
    assert await gate(tree).failure("0.2.0", 2) == "1 GPUs answer, 2 did before"
    assert await gate(tree, 10.0).failure("0.2.0", 1) == ""


async def test_a_driver_that_does_not_answer_is_not_healthy_where_there_were_gpus(tree):
    tree.gpus = None
    assert "different versions" in await gate(tree).failure("0.2.0", 1)
    assert await gate(tree, 10.0).failure("0.2.0", 0) == ""


async def test_no_inference_process_is_no_gpu(tree):
    tree.programs = tuple(name for name in PROGRAMS if name != "inference")
    assert await gate(tree).failure("0.2.0", 1) == "0 GPUs answer, 1 did before"
