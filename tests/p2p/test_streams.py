import asyncio

import pytest

from nodeapp.core.errors import NotFound, ProtocolViolation, Unavailable
from nodeapp.network.host import INBOUND_STREAMS_PER_PEER
from nodeapp.network.pump import READ_BYTES, READ_CREDIT_BYTES
from nodeapp.network.streams import WRITE_LIMIT_BYTES
from tests.p2p.hosts import ECHO, pair, send_raw, served, until

MIB = 1 << 20


async def test_frames_of_every_size_come_back_equal(tmp_path):
    async with pair(tmp_path) as (client, server):
        stream = await client.open_stream(server.peer_id, [ECHO])
        assert stream.remote_peer_id == server.peer_id
        for size in (0, 1, 127, 128, 65_535, 65_536, MIB):
            sent = bytes(index % 251 for index in range(size))
            await stream.write_frame(sent)
            assert await stream.read_frame(MIB, deadline_seconds=10) == sent


async def test_close_ends_one_direction_and_the_peer_can_still_answer(tmp_path):
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        await ours.write_frame(b"question")
        await ours.close()
        assert await theirs.read_frame(deadline_seconds=5) == b"question"
        assert await theirs.read_frame(deadline_seconds=5) is None
        await theirs.write_frame(b"answer")
        await theirs.close()
        assert await ours.read_frame(deadline_seconds=5) == b"answer"
        assert await ours.read_frame(deadline_seconds=5) is None
        await until(lambda: ours.is_over and theirs.is_over)
        with pytest.raises(Unavailable, match="closed for writing"):
            await ours.write_frame(b"late")


async def test_a_reset_is_seen_by_the_peer(tmp_path):
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        await ours.write_frame(b"hello")
        assert await theirs.read_frame(deadline_seconds=5) == b"hello"
        await ours.reset()
        with pytest.raises(Unavailable, match="reset"):
            await ours.read_frame(deadline_seconds=5)
        with pytest.raises(Unavailable):
            await theirs.read_frame(deadline_seconds=5)
        with pytest.raises(Unavailable):
            await theirs.write_frame(b"nobody reads this")


async def test_an_oversize_frame_is_a_violation_and_ends_the_stream(tmp_path):
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        await ours.write_frame(bytes(2000))
        with pytest.raises(ProtocolViolation, match="cap 1000"):
            await theirs.read_frame(1000, deadline_seconds=5)
        with pytest.raises(ProtocolViolation):
            await theirs.read_frame(deadline_seconds=5)
        with pytest.raises(Unavailable):
            await ours.read_frame(deadline_seconds=5)


async def test_garbage_is_a_violation(tmp_path):
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        await send_raw(ours, b"\xff" * 4000)
        with pytest.raises(ProtocolViolation):
            await theirs.read_frame(deadline_seconds=5)


async def test_an_end_inside_a_frame_is_not_an_orderly_end(tmp_path):
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        await send_raw(ours, b"\x64only a few of a hundred")
        await ours.close()
        with pytest.raises(Unavailable, match="inside a frame"):
            await theirs.read_frame(deadline_seconds=5)


async def test_a_thousand_frames_reach_a_slow_reader_in_order_and_memory_stays_bounded(tmp_path):
    count, body = 1000, bytes(4000)
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):

        async def write():
            for number in range(count):
                await ours.write_frame(number.to_bytes(4) + body)
            await ours.close()

        async with asyncio.timeout(25), asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            # The reader takes nothing until the writer is held back.
            await until(lambda: ours._unsent_bytes >= WRITE_LIMIT_BYTES)
            await until(lambda: len(theirs._inbox) >= READ_CREDIT_BYTES)
            assert len(theirs._inbox) <= READ_CREDIT_BYTES + READ_BYTES
            for number in range(count):
                frame = await theirs.read_frame(deadline_seconds=5)
                assert int.from_bytes(frame[:4]) == number
                if number % 100 == 0:
                    await asyncio.sleep(0)
            assert await theirs.read_frame(deadline_seconds=5) is None


async def test_cancelling_a_reader_loses_no_frame(tmp_path):
    count = 300
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):

        async def write():
            for number in range(count):
                await ours.write_frame(number.to_bytes(2) + bytes(700))
                if number % 7 == 0:
                    await asyncio.sleep(0.001)

        received, cancelled = [], 0
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            while len(received) < count:
                reader = tasks.create_task(theirs.read_frame())
                await asyncio.sleep(0)
                reader.cancel()
                try:
                    received.append(int.from_bytes((await reader)[:2]))
                except asyncio.CancelledError:
                    cancelled += 1
                    await asyncio.sleep(0.0005)
        assert received == list(range(count))
        assert cancelled > 0


async def test_a_read_has_a_deadline(tmp_path):
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        with pytest.raises(Unavailable, match="no frame"):
            await theirs.read_frame(deadline_seconds=0.05)
        await ours.write_frame(b"later")
        assert await theirs.read_frame(deadline_seconds=5) == b"later"


async def test_an_unknown_protocol_is_told_apart_from_a_lost_peer(tmp_path):
    async with pair(tmp_path) as (client, server):
        with pytest.raises(NotFound, match="offers none of /fabstir/none/9"):
            await client.open_stream(server.peer_id, ["/fabstir/none/9.0.0"])
        stream = await client.open_stream(server.peer_id, ["/fabstir/none/9.0.0", ECHO])
        assert stream.protocol_id == ECHO


async def test_fifty_streams_on_one_connection_do_not_mix(tmp_path):
    async with pair(tmp_path) as (client, server):

        async def talk(number):
            stream = await client.open_stream(server.peer_id, [ECHO])
            for turn in range(5):
                await stream.write_frame(b"%d/%d" % (number, turn))
                assert await stream.read_frame(deadline_seconds=15) == b"%d/%d" % (number, turn)
            await stream.close()
            assert await stream.read_frame(deadline_seconds=15) is None

        async with asyncio.timeout(25), asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(talk(number))


async def test_a_bug_in_a_handler_resets_its_stream_and_spares_the_others(tmp_path):
    async def broken(stream):
        await stream.read_frame()
        raise ZeroDivisionError

    async with pair(tmp_path) as (client, server):
        server.set_handler("/fabstir/broken/1.0.0", broken)
        good = await client.open_stream(server.peer_id, [ECHO])
        bad = await client.open_stream(server.peer_id, ["/fabstir/broken/1.0.0"])
        await bad.write_frame(b"x")
        with pytest.raises(Unavailable):
            await bad.read_frame(deadline_seconds=5)
        await good.write_frame(b"still here")
        assert await good.read_frame(deadline_seconds=5) == b"still here"


async def test_one_peer_cannot_hold_more_streams_than_its_share(tmp_path):
    async with pair(tmp_path) as (client, server):
        streams = []
        for _ in range(INBOUND_STREAMS_PER_PEER):
            stream = await client.open_stream(server.peer_id, [ECHO])
            await stream.write_frame(b"mine")
            assert await stream.read_frame(deadline_seconds=5) == b"mine"
            streams.append(stream)

        async def one_more():
            surplus = await client.open_stream(server.peer_id, [ECHO])
            await surplus.read_frame(deadline_seconds=5)

        with pytest.raises(Unavailable):
            await one_more()
        await streams[0].reset()
        await until(lambda: server._inbound[client.peer_id] < INBOUND_STREAMS_PER_PEER)
        again = await client.open_stream(server.peer_id, [ECHO])
        await again.write_frame(b"room")
        assert await again.read_frame(deadline_seconds=5) == b"room"


async def test_frames_cross_between_the_loops_in_batches(tmp_path):
    count = 3000
    async with pair(tmp_path) as (client, server), served(client, server) as (ours, theirs):
        wakeups = []
        for stream in (ours, theirs):
            bridge = stream._bridge
            for name in ("to_loop", "post"):
                original = getattr(bridge, name)
                counted = lambda *args, original=original: (wakeups.append(1), original(*args))  # noqa: E731
                setattr(bridge, name, counted)

        async def write():
            for _ in range(count):
                await ours.write_frame(bytes(100))

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            for _ in range(count):
                assert await theirs.read_frame(deadline_seconds=10) == bytes(100)
        assert len(wakeups) < count / 4


async def test_small_frames_are_read_without_a_word_and_long_answers_renew_the_window(
    tmp_path, monkeypatch
):
    from libp2p.stream_muxer.yamux.yamux import YamuxStream

    told = []
    send = YamuxStream.send_window_update

    async def counted(self, increment, skip_lock=False):
        told.append(increment)
        await send(self, increment, skip_lock)

    monkeypatch.setattr(YamuxStream, "send_window_update", counted)
    async with pair(tmp_path) as (client, server):
        stream = await client.open_stream(server.peer_id, [ECHO])
        for number in range(100):
            frame = str(number).encode()
            await stream.write_frame(frame)
            assert await stream.read_frame(deadline_seconds=5) == frame
        assert told == []
        for _ in range(20):  # 2 MB each way; a window is 256 KiB
            await stream.write_frame(bytes(100_000))
            assert len(await stream.read_frame(1 << 20, deadline_seconds=10)) == 100_000
        # More than once, else everything fitted into the first window.
        assert len(told) > 4
