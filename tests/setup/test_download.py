"""Downloads: resumed only when the file is the same, hashed, bounded, refused by name."""

from __future__ import annotations

import errno
import hashlib

import pytest
import pytest_asyncio
from blake3 import blake3

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, TooLarge, Unavailable
from nodeapp.service import download as downloads
from nodeapp.service.download import Wanted, download
from tests.fakes.file_server import FileServer

DATA = bytes(range(256)) * 2000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest_asyncio.fixture
async def server():
    made = FileServer(DATA)
    made.url = await made.start() + "/m.gguf"
    yield made
    await made.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(downloads, "RETRY_SECONDS", 0.001)


class Fetching:
    """One download with its progress."""

    def __init__(self, tmp_path, server):
        server.taken = lambda: self.seen[-1].done if self.seen else 0
        self.part = tmp_path / "p.part"
        self.seen = []
        self.rooms = []

    async def run(self, url, *, sha256=SHA, max_bytes=1 << 30, **more):
        wanted = Wanted(url, max_bytes, sha256, **more)
        return await download(
            wanted, self.part, report=self.seen.append, check_room=self.rooms.append
        )


@pytest.fixture
def fetching(tmp_path, server):
    return Fetching(tmp_path, server)


async def test_a_file_arrives_with_its_hash_and_progress(server, fetching):
    fetched = await fetching.run(server.url)
    assert (fetched.sha256, fetched.size_bytes) == (SHA, len(DATA))
    assert fetched.path.read_bytes() == DATA
    assert (fetching.seen[0].done, fetching.seen[0].total) == (0, len(DATA))
    assert fetching.seen[-1].done == len(DATA)
    assert fetching.rooms == [len(DATA)]
    assert [path.name for path in fetched.path.parent.iterdir()] == ["p.part"]


async def test_a_broken_connection_goes_on_where_it_stopped(server, fetching):
    server.break_after = [100_000, 150_000]
    fetched = await fetching.run(server.url)
    assert fetched.sha256 == SHA
    assert "Range" not in server.requests[0]
    starts = [int(request["Range"][6:-1]) for request in server.requests[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]
    assert {request["If-Range"] for request in server.requests[1:]} == {'"v1"'}


async def test_the_next_command_goes_on_and_hashes_what_was_there(server, fetching):
    server.break_after = [200_000] + [0] * 20
    with pytest.raises(Unavailable, match="the same command goes on from there"):
        await fetching.run(server.url)
    kept = fetching.part.stat().st_size
    assert kept > 0
    server.break_after = []
    again = Fetching(fetching.part.parent, server)
    assert (await again.run(server.url)).sha256 == SHA
    assert server.requests[-1]["Range"] == f"bytes={kept}-"
    assert again.seen[0].resumed == kept


async def test_a_rotten_part_is_noticed_and_deleted(server, fetching):
    server.break_after = [200_000] + [0] * 20
    with pytest.raises(Unavailable):
        await fetching.run(server.url)
    rotten = bytearray(fetching.part.read_bytes())
    rotten[1000] ^= 1
    fetching.part.write_bytes(rotten)
    server.break_after = []
    with pytest.raises(Rejected, match="it was deleted"):
        await Fetching(fetching.part.parent, server).run(server.url)
    assert list(fetching.part.parent.iterdir()) == []


async def test_a_file_that_changed_meanwhile_starts_again(server, fetching):
    server.break_after = [200_000]
    other = bytes(reversed(DATA))
    real_send = server._send

    async def swap(request):
        if len(server.requests) == 2:
            server.data, server.etag = other, '"v2"'
        return await real_send(request)

    server._send = swap
    fetched = await fetching.run(server.url, sha256=hashlib.sha256(other).hexdigest())
    assert fetched.path.read_bytes() == other


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
async def test_without_a_strong_validator_nothing_is_continued(server, fetching, etag):
    server.etag = etag
    server.break_after = [200_000]
    assert (await fetching.run(server.url)).sha256 == SHA
    assert all("Range" not in request for request in server.requests)


async def test_a_server_without_ranges_sends_all_again(server, fetching):
    server.takes_ranges = False
    server.break_after = [200_000]
    assert (await fetching.run(server.url)).sha256 == SHA


async def test_a_complete_part_is_not_sent_again(server, fetching):
    server.break_after = [len(DATA)]
    server.says_length = False
    assert (await fetching.run(server.url)).sha256 == SHA


async def test_swapped_bytes_are_refused_and_deleted(server, fetching):
    server.data = DATA[:-1] + b"\x00"
    with pytest.raises(Rejected, match=f"expected {SHA}"):
        await fetching.run(server.url)
    assert not fetching.part.exists()


async def test_an_s5_blob_is_checked_by_blake3(server, fetching):
    good = blake3(DATA).hexdigest()
    assert (await fetching.run(server.url, sha256="", blake3=good)).sha256 == SHA
    with pytest.raises(Rejected, match="has blake3"):
        await fetching.run(server.url, sha256="", blake3="0" * 64)


@pytest.mark.parametrize("says_length", [True, False])
async def test_more_than_allowed_is_cut_off(server, fetching, says_length):
    server.says_length = says_length
    with pytest.raises(TooLarge, match="limit 1000"):
        await fetching.run(server.url, max_bytes=1000)
    assert not fetching.part.exists() or fetching.part.stat().st_size <= 1000


async def test_no_room_is_told_before_a_byte_is_written(server, fetching):
    def full(size):
        raise TooLarge(f"{size} bytes do not fit")

    with pytest.raises(TooLarge, match=f"{len(DATA)} bytes"):
        await download(
            Wanted(server.url, 1 << 30, SHA), fetching.part, report=print, check_room=full
        )
    assert not fetching.part.exists()


async def test_server_trouble_is_tried_again_and_refusals_are_not(server, fetching):
    server.statuses = [503, 429]
    assert (await fetching.run(server.url)).sha256 == SHA
    server.statuses = [404]
    with pytest.raises(NotFound, match="status 404"):
        await fetching.run(server.url)
    server.statuses = [403]
    with pytest.raises(Rejected, match="status 403"):
        await fetching.run(server.url)


async def test_a_redirect_is_followed_but_not_without_end(server, fetching):
    server.redirect = "/elsewhere.gguf"
    assert (await fetching.run(server.url)).sha256 == SHA
    assert server.requests[-1]["path"] == "/elsewhere.gguf"
    server.statuses = []

    async def forever(request):
        server.redirect = "/again"
        return await FileServer._answer(server, request)

    server.redirect = "/again"
    server._send = forever
    with pytest.raises(Rejected, match="redirects more than 5 times"):
        await fetching.run(server.url)


@pytest.mark.parametrize(
    ("url", "sha256", "why"),
    [
        ("http://127.0.0.1:1/m.gguf", "", "give --sha256, or an https address"),
        ("ftp://127.0.0.1/m.gguf", SHA, "not an https address"),
        ("file:///etc/passwd", SHA, "not an https address"),
        ("https://[::1/m.gguf", SHA, "not an address"),
    ],
)
async def test_addresses_that_prove_nothing_are_refused(fetching, url, sha256, why):
    with pytest.raises(InvalidRequest, match=why):
        await fetching.run(url, sha256=sha256)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_at_once_and_keeps_what_came(
    server, fetching, monkeypatch, number
):
    def append(self, file, chunk):
        file.write(chunk[:1000])
        raise OSError(number, "no room")

    with monkeypatch.context() as disk:
        disk.setattr(downloads._Transfer, "_append", append)
        with pytest.raises(TooLarge, match="is full"):
            await fetching.run(server.url)
    assert len(server.requests) == 1
    assert fetching.part.stat().st_size == 1000
    assert (await fetching.run(server.url)).sha256 == SHA
    assert server.requests[-1]["Range"] == "bytes=1000-"


async def test_a_redirect_to_no_address_is_refused(server, fetching):
    server.redirect = "http://[::1"
    with pytest.raises(Rejected, match="no address"):
        await fetching.run(server.url)


async def test_a_redirect_to_another_scheme_is_refused(server, fetching):
    server.redirect = "file:///etc/passwd"
    with pytest.raises(InvalidRequest, match="not an https address"):
        await fetching.run(server.url)
