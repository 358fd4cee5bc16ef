"""One process asks another over a Unix socket: typed errors, deadlines, streams."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
import structlog
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core import errors
from nodeapp.core.errors import (
    BY_CODE,
    Busy,
    InvalidRequest,
    NodeError,
    ProtocolViolation,
    Rejected,
    Unavailable,
)
from nodeapp.service.client import RpcClient
from nodeapp.service.lifecycle import listen_unix
from nodeapp.service.server import STATUS_OF_CODE, errors_to_replies, same_user_only
from nodeapp.wire import ipc
from tests.fakes.process import Count, TestPart


class Server:
    """The product's handlers and middlewares over a socket, in this process."""

    def __init__(self, path):
        self.path = path
        self.part = TestPart(None, "ok")
        self.runner = None
        self.requests = []

    async def start(self):
        @web.middleware
        async def note(request, handler):
            self.requests.append(request.headers.copy())
            return await handler(request)

        app = web.Application(middlewares=[note, errors_to_replies, same_user_only])
        app.router.add_routes([*self.part.routes(), web.post("/cut", self.cut)])
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        await listen_unix(self.runner, self.path)

    async def cut(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        body = msgspec.msgpack.encode(Count(number=0))
        await response.write(ipc.encode_frame(ipc.FRAME_MESSAGE, body))
        await response.write(ipc.encode_frame(ipc.FRAME_MESSAGE, body)[:-1])
        return response

    async def stop(self):
        await self.runner.cleanup()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
async def server(tmp_path):
    made = Server(tmp_path / "tested.sock")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(server):
    async with RpcClient(server.path, "tested") as made:
        yield made


async def ask(client, how="", number=1, *, seconds=5.0, retry=False):
    message = Count(number=number, how=how)
    return await client.call("/next", message, Count, deadline_seconds=seconds, retry=retry)


@asynccontextmanager
async def stream(client, number, how="", path="/stream"):
    message = Count(number=number, how=how)
    async with client.stream(path, message, Count, deadline_seconds=5) as events:
        yield events


async def collect(client, number, how="", path="/stream", seen=None):
    found = [] if seen is None else seen
    async with stream(client, number, how, path) as events:
        async for event in events:
            found.append(event.number)
    return found


async def test_a_question_is_answered(client):
    assert (await ask(client)).number == 2


async def test_an_error_arrives_as_what_it_was(client):
    with pytest.raises(InvalidRequest, match="number 1 is odd"):
        await ask(client, "rejected")
    with pytest.raises(Busy) as caught:
        await ask(client, "busy")
    assert caught.value.retry_after_seconds == 2.5


def test_every_kind_of_error_has_a_status_and_comes_back_as_itself():
    assert set(STATUS_OF_CODE) == set(BY_CODE)
    for kind in BY_CODE.values():
        there = ipc.error_body(kind("why", retry_after_seconds=1.5))
        again = ipc.error_from_body(there)
        assert (type(again), again.message, again.retry_after_seconds) == (kind, "why", 1.5)


def test_a_code_of_a_newer_version_is_a_rejection():
    assert type(errors.from_code("teapot", "short and stout")) is Rejected


def test_the_leaves_of_nested_groups_are_found_in_order():
    first, second, third = Busy("1"), InvalidRequest("2"), Unavailable("3")
    group = ExceptionGroup("", [first, ExceptionGroup("", [second, third])])
    assert errors.leaves(group) == [first, second, third]


async def test_a_bug_of_the_other_side_is_unavailable_and_tells_nothing(client):
    with pytest.raises(Unavailable, match=r"^/next: status 500$"):
        await ask(client, "bug")


async def test_a_body_of_another_shape_is_an_invalid_request(client):
    class Other(ipc.Message, frozen=True):
        text: str

    with pytest.raises(InvalidRequest, match="/next"):
        await client.call("/next", Other("x"), Count, deadline_seconds=5)


async def test_garbage_is_an_invalid_request(server):
    connector = aiohttp.UnixConnector(path=str(server.path))
    async with aiohttp.ClientSession(connector=connector) as session:
        for body in (b"", b"\xc1", b"\xff" * 100, msgspec.msgpack.encode({"number": "x"})):
            async with session.post("http://tested/next", data=body) as response:
                assert response.status == 400
                error = msgspec.msgpack.decode(await response.read(), type=ipc.ErrorBody)
                assert error.code == "invalid_request"


async def test_a_passed_deadline_ends_the_work_on_both_sides(client, server):
    with pytest.raises(Unavailable):
        await ask(client, "slow", seconds=0.1)
    await server.until(lambda: server.part.cancelled == 1)


async def test_a_caller_that_goes_away_ends_the_work(client, server):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ask(client, "slow", seconds=30)
    await server.until(lambda: server.part.cancelled == 1)


async def test_a_deadline_and_the_request_id_are_passed_on(client, server):
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        await ask(client, seconds=5)
    headers = server.requests[-1]
    assert 4_000 < int(headers[ipc.DEADLINE_HEADER]) <= 5_000
    assert headers[ipc.REQUEST_ID_HEADER] == "abc"


async def test_a_retried_question_waits_for_a_restart(client, server):
    await server.stop()
    refused = asyncio.Semaphore(0)

    async def hang_up(_reader, writer):
        writer.close()
        refused.release()

    async with asyncio.TaskGroup() as tasks:
        async with await asyncio.start_unix_server(hang_up, server.path):
            asking = tasks.create_task(ask(client, retry=True, seconds=10))
            for _ in range(2):
                await refused.acquire()
            assert not asking.done()
        server.path.unlink(missing_ok=True)
        await server.start()
    assert asking.result().number == 2


async def test_a_rejection_is_not_retried(client, server):
    with pytest.raises(InvalidRequest):
        await ask(client, "rejected", retry=True)
    assert len(server.requests) == 1


async def test_retries_share_one_deadline(client, server):
    """An attempt gets what is left, not the whole time again."""
    await server.stop()
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(Unavailable):
        await ask(client, retry=True, seconds=0.3)
    assert loop.time() - began < 1.0
    await server.start()
    with pytest.raises(Unavailable):
        await ask(client, "slow", retry=True, seconds=0.3)
    given = [int(headers[ipc.DEADLINE_HEADER]) for headers in server.requests]
    assert given == sorted(given, reverse=True)
    assert loop.time() - began < 2.5


async def test_a_socket_that_is_not_there_is_unavailable(tmp_path):
    async with RpcClient(tmp_path / "no.sock", "tested") as client:
        with pytest.raises(Unavailable, match="tested is not reachable: it does not run"):
            await ask(client)
        with pytest.raises(Unavailable, match="tested is not reachable"):
            await collect(client, 1)


async def test_a_client_that_is_not_open_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="not open"):
        await ask(RpcClient(tmp_path / "no.sock", "tested"))


async def test_a_stream_ends_after_its_last_event(client, server):
    assert await collect(client, 3) == [0, 1, 2]
    assert server.part.closed_streams == 1


async def test_an_error_in_mid_stream_arrives_after_the_events_before_it(client):
    seen = []
    with pytest.raises(InvalidRequest, match="no more"):
        await collect(client, 2, "rejected", seen=seen)
    assert seen == [0, 1]


async def test_a_stream_cut_off_in_mid_frame_is_unavailable(client):
    seen = []
    with pytest.raises(Unavailable, match="not reachable"):
        await collect(client, 1, path="/cut", seen=seen)
    assert seen == [0]


async def test_a_stream_refused_at_once_is_an_error(client):
    with pytest.raises(NodeError):
        await collect(client, 1, path="/nowhere")


async def test_a_reader_that_leaves_closes_the_generator(client, server):
    async with stream(client, 1, "endless") as events:
        async for _ in events:
            break
    await server.until(lambda: server.part.closed_streams == 1)


async def test_a_reader_that_stops_reading_stops_the_producer(client, server):
    made = 0

    async def counting(ask):
        nonlocal made
        while True:
            made += 1
            yield Count(number=made, how="x" * 10_000)

    server.part.stream = counting
    await server.stop()
    await server.start()
    async with stream(client, 1) as events:
        await anext(aiter(events))
        last = -1
        async with asyncio.timeout(10):
            while made != last:
                last = made
                await asyncio.sleep(0.1)
        assert made < 200


def test_a_frame_header_of_another_kind_or_size_is_a_violation():
    assert ipc.decode_frame_header(ipc.encode_frame(2, b"abc")[:5]) == (2, 3)
    for header in (b"\x03\x00\x00\x00\x00", b"\x00\xff\x00\x00\x00"):
        with pytest.raises(ProtocolViolation):
            ipc.decode_frame_header(header)


@settings(max_examples=100, deadline=None)
@given(bodies=st.lists(st.binary(max_size=40), max_size=6), cuts=st.lists(st.integers(1, 30)))
def test_property_frames_come_out_whole_wherever_the_bytes_were_cut(bodies, cuts):
    wire = b"".join(ipc.encode_frame(ipc.FRAME_MESSAGE, body) for body in bodies)
    received, found = bytearray(), []
    for size in (*cuts, len(wire)):
        received += wire[:size]
        wire = wire[size:]
        found += ipc.take_frames(received)
    assert found == [(ipc.FRAME_MESSAGE, body) for body in bodies]
    assert not received


@settings(max_examples=100, deadline=None)
@given(header=st.binary(min_size=5, max_size=5))
def test_property_any_header_is_bounded_or_a_violation(header):
    try:
        kind, length = ipc.decode_frame_header(header)
    except ProtocolViolation:
        return
    assert kind in (0, 1, 2)
    assert length <= ipc.MAX_FRAME_BYTES
