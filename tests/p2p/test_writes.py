"""What the streams of a connection write leaves together, whole and in order."""

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError

from nodeapp.network.writes import (
    BATCH_BYTES,
    DATA,
    HEADER,
    PING,
    ROOM_BYTES,
    STALL_SECONDS,
    WINDOW_UPDATE,
    FrameWriter,
)

FIN = 4


class Socket:
    """The encrypted connection: what it was given, write by write."""

    def __init__(self):
        self.writes = []
        self.gate = trio.Event()
        self.gate.set()
        self.failure = None

    async def write(self, batch):
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.writes.append(batch)


class Muxed:
    def __init__(self):
        self.secured_conn = Socket()
        self.is_closed = False
        self._write_lock = trio.Lock()

    async def close(self):
        self.is_closed = True


class Yamux:
    """A stream as far as the writer looks at it."""

    def __init__(self, stream_id=1, window=256 * 1024):
        self.stream_id, self.send_window = stream_id, window
        self.send_closed = self.closed = False


@asynccontextmanager
async def writing():
    muxed = Muxed()
    writer = FrameWriter(muxed)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            yield writer, muxed
            nursery.cancel_scope.cancel()


def frame(kind=DATA, flags=0, stream=1, body=b""):
    return HEADER.pack(0, kind, flags, stream, len(body)) + body


def frames(blob):
    """(stream, body) of each data frame."""
    found = []
    while blob:
        _version, _kind, _flags, stream, size = HEADER.unpack_from(blob)
        found.append((stream, blob[HEADER.size : HEADER.size + size]))
        blob = blob[HEADER.size + size :]
    return found


def run(work, clock=None):
    trio.run(work, clock=clock)


def test_frames_of_many_streams_are_one_write():
    async def work():
        async with writing() as (writer, muxed):
            for number in range(20):
                assert writer.try_data(Yamux(number), b"token %d" % number)
            await trio.testing.wait_all_tasks_blocked()
            (batch,) = muxed.secured_conn.writes
            assert frames(batch) == [(n, b"token %d" % n) for n in range(20)]

    run(work)


def test_a_batch_is_one_noise_message_and_frames_stay_whole_and_in_order():
    async def work():
        async with writing() as (writer, muxed), trio.open_nursery() as nursery:
            sent = [bytes([number]) * 40_000 for number in range(5)]
            for body in sent:
                nursery.start_soon(writer.write, frame(body=body))
                await trio.testing.wait_all_tasks_blocked()
            writes = muxed.secured_conn.writes
            assert max(map(len, writes)) <= BATCH_BYTES
            assert [body for blob in writes for _stream, body in frames(blob)] == sent

    run(work)


def test_data_beyond_window_room_or_the_end_of_the_stream_is_left_to_the_library():
    async def work():
        async with writing() as (writer, muxed):
            small = Yamux(window=5)
            assert not writer.try_data(small, b"123456")
            assert small.send_window == 5
            assert writer.try_data(small, b"12345")
            assert small.send_window == 0
            ended = Yamux()
            ended.send_closed = True
            assert not writer.try_data(ended, b"late")
            muxed.secured_conn.gate = trio.Event()
            taken = 0
            while writer.try_data(Yamux(), bytes(1000)):
                taken += 1
            assert ROOM_BYTES <= taken * 1012 <= ROOM_BYTES + 2024

    run(work)


def test_data_waits_for_room_the_end_of_a_stream_until_it_left_a_window_update_not_at_all():
    async def work():
        async with writing() as (writer, muxed), trio.open_nursery() as nursery:
            muxed.secured_conn.gate = trio.Event()
            await writer.write(frame(WINDOW_UPDATE))
            await writer.write(frame(PING))
            done = []

            async def last(name, flags, body=b""):
                await writer.write(frame(flags=flags, body=body))
                done.append(name)

            nursery.start_soon(last, "small", 0, b"x")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(last, "end", FIN)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(last, "large", 0, bytes(ROOM_BYTES))
            await trio.testing.wait_all_tasks_blocked()
            assert done == ["small"]
            muxed.secured_conn.gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(done) == ["end", "large", "small"]

    run(work)


def test_cancelling_a_writer_cuts_no_frame():
    async def work():
        async with writing() as (writer, muxed):
            muxed.secured_conn.gate = trio.Event()
            with trio.move_on_after(0.05):
                await writer.write(frame(flags=FIN, body=b"whole"))
            assert writer.try_data(Yamux(), b"next")
            muxed.secured_conn.gate.set()
            await trio.testing.wait_all_tasks_blocked()
            sent = b"".join(muxed.secured_conn.writes)
            assert [body for _stream, body in frames(sent)] == [b"whole", b"next"]

    run(work)


def test_a_write_that_fails_closes_the_connection_and_tells_everybody_who_waits():
    async def work():
        async with writing() as (writer, muxed):
            muxed.secured_conn.failure = OSError("gone")
            with pytest.raises(ConnectionClosedError, match="gone"):
                await writer.write(frame(flags=FIN, body=b"x"))
            await trio.testing.wait_all_tasks_blocked()
            assert muxed.is_closed
            assert not writer.try_data(Yamux(), b"more")
            with pytest.raises(ConnectionClosedError):
                await writer.write(frame(body=b"more"))

    run(work)


def test_a_connection_that_takes_nothing_is_closed():
    async def work():
        async with writing() as (writer, muxed):
            muxed.secured_conn.gate = trio.Event()
            begun = trio.current_time()
            with pytest.raises(ConnectionClosedError, match="took nothing"):
                await writer.write(frame(flags=FIN, body=b"x"))
            assert trio.current_time() - begun == pytest.approx(STALL_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            assert muxed.is_closed

    run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def test_who_waits_is_told_when_the_connection_ends():
    async def work():
        muxed = Muxed()
        muxed.secured_conn.gate = trio.Event()
        writer = FrameWriter(muxed)
        told = []

        async def write():
            try:
                await writer.write(frame(flags=FIN, body=b"x"))
            except ConnectionClosedError:
                told.append(True)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                async def send():
                    with scope:
                        await writer.run()

                nursery.start_soon(send)
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert told == [True]

    run(work)


def test_the_first_batch_waits_for_whoever_is_inside_the_librarys_own_method():
    async def work():
        async with writing() as (writer, muxed):
            async with muxed._write_lock:
                assert writer.try_data(Yamux(), b"after")
                await trio.testing.wait_all_tasks_blocked()
                assert muxed.secured_conn.writes == []
            await trio.testing.wait_all_tasks_blocked()
            assert len(muxed.secured_conn.writes) == 1

    run(work)
