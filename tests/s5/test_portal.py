"""nodeapp/s5/portal.py and client.py, and the s5 process, over real sockets."""

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, TooLarge, Unavailable
from nodeapp.s5.blobs import open_blob_store
from nodeapp.s5.cid import blob_id_of, cid_of
from nodeapp.s5.client import download_blob, upload_blob
from nodeapp.s5.portal import UPLOAD, public_app, upload
from tests.s5.legacy import legacy_cid_of

DATA = bytes(range(256)) * 1000
CID = cid_of(blob_id_of(DATA))


@asynccontextmanager
async def serving(app: web.Application, socket_path: Path | None = None):
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        if socket_path is not None:
            await web.UnixSite(runner, str(socket_path)).start()
            yield str(socket_path)
        else:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def portal(tmp_path):
    store = open_blob_store(tmp_path / "s5", max_blob_bytes=1 << 20, quota_bytes=10 << 20)
    private = web.Application()
    private.router.add_post(UPLOAD, partial(upload, store=store))
    async with serving(public_app(store, "0")) as url, serving(private, tmp_path / "s5.sock"):
        yield url, tmp_path / "s5.sock"


@asynccontextmanager
async def answering(handler):
    app = web.Application()
    app.router.add_get("/s5/blob/{cid}", handler)
    async with serving(app) as url:
        yield url


async def fetch(url, **headers):
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, response.headers, await response.read()


async def test_an_uploaded_blob_is_downloaded_by_its_cid(tmp_path):
    async with portal(tmp_path) as (url, socket_path):
        assert await upload_blob(socket_path, DATA) == CID
        assert await upload_blob(socket_path, DATA) == CID
        for cid in (CID, legacy_cid_of(blob_id_of(DATA))):
            assert await download_blob(url, cid, max_bytes=1 << 20) == DATA


async def test_a_multipart_upload_is_the_same_blob(tmp_path):
    async with portal(tmp_path) as (url, socket_path):
        form = aiohttp.FormData()
        form.add_field("file", DATA, filename="x")
        connector = aiohttp.UnixConnector(path=str(socket_path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post("http://s5/s5/upload", data=form) as response,
        ):
            assert (await response.json())["cid"] == CID
        assert await download_blob(url, CID, max_bytes=1 << 20) == DATA


async def test_nothing_is_uploaded_over_tcp(tmp_path):
    async with (
        portal(tmp_path) as (url, _),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/s5/upload", data=b"x") as response,
    ):
        assert response.status in (404, 405)


async def test_a_blob_is_served_for_ever_and_as_an_attachment(tmp_path):
    async with portal(tmp_path) as (url, socket_path):
        await upload_blob(socket_path, DATA)
        status, headers, body = await fetch(f"{url}/s5/download/{CID}")
        assert (status, body) == (200, DATA)
        assert "immutable" in headers["Cache-Control"]
        assert headers["Content-Disposition"] == "attachment"
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, _, body = await fetch(f"{url}/s5/blob/{CID}", **{"If-None-Match": headers["ETag"]})
        assert (status, body) == (304, b"")


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "expected"),
    [
        ("bytes=0-9", 206, "bytes 0-9/256000", DATA[:10]),
        ("bytes=255990-", 206, "bytes 255990-255999/256000", DATA[-10:]),
        ("bytes=-10", 206, "bytes 255990-255999/256000", DATA[-10:]),
        ("bytes=100000-200000", 206, "bytes 100000-200000/256000", DATA[100000:200001]),
        ("bytes=255999-999999", 206, "bytes 255999-255999/256000", DATA[-1:]),
        ("bytes=256000-", 416, "bytes */256000", b""),
        ("bytes=x", 400, None, None),
    ],
)
async def test_a_range_is_served_exactly(tmp_path, asked, status, content_range, expected):
    async with portal(tmp_path) as (url, socket_path):
        await upload_blob(socket_path, DATA)
        got, headers, body = await fetch(f"{url}/s5/blob/{CID}", Range=asked)
        assert (got, headers.get("Content-Range")) == (status, content_range)
        assert expected is None or body == expected


async def test_what_is_not_there_or_no_cid_is_told_apart(tmp_path):
    async with portal(tmp_path) as (url, _):
        assert (await fetch(f"{url}/s5/blob/{CID}"))[0] == 404
        assert (await fetch(f"{url}/s5/blob/nonsense"))[0] == 400
        assert (await fetch(f"{url}/s5/blob/..%2f..%2fetc%2fpasswd"))[0] in (400, 404)
        assert (await fetch(f"{url}/s5/version"))[0] == 200
        with pytest.raises(NotFound):
            await download_blob(url, CID, max_bytes=1 << 20)


async def test_an_empty_blob_goes_both_ways(tmp_path):
    async with portal(tmp_path) as (url, socket_path):
        cid = await upload_blob(socket_path, b"")
        assert await download_blob(url, cid, max_bytes=10) == b""


async def test_a_portal_that_lies_is_not_believed():
    async def other_bytes(_request):
        return web.Response(body=DATA[:-1] + b"\0")

    async def too_short(_request):
        return web.Response(body=DATA[:-1])

    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))

    async def compressed(_request):
        response = web.Response(body=DATA)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    for handler in (other_bytes, too_short, endless, compressed):
        async with answering(handler) as url:
            with pytest.raises(Rejected, match="portal sent"):
                await download_blob(url, CID, max_bytes=1 << 20, deadline_seconds=10)


async def test_redirects_silence_and_oversize_are_refused():
    async def elsewhere(_request):
        raise web.HTTPFound("http://127.0.0.1:1/secret")

    async def silence(_request):
        await asyncio.Event().wait()

    for handler in (elsewhere, silence):
        async with answering(handler) as url:
            with pytest.raises(Unavailable):
                await download_blob(url, CID, max_bytes=1 << 20, deadline_seconds=0.5)
    with pytest.raises(TooLarge):
        await download_blob("http://127.0.0.1:1", CID, max_bytes=1000)
    with pytest.raises(InvalidRequest):
        await download_blob("file:///etc", CID, max_bytes=1 << 20)
    with pytest.raises(Unavailable):
        await download_blob("http://127.0.0.1:1", CID, max_bytes=1 << 20)


async def test_an_upload_that_another_blob_answers_is_refused(tmp_path):
    async def wrong(_request):
        return web.json_response({"cid": cid_of(blob_id_of(b"other"))})

    async def nonsense(_request):
        return web.json_response({"cid": 5})

    for number, handler in enumerate((wrong, nonsense)):
        app = web.Application()
        app.router.add_post(UPLOAD, handler)
        path = tmp_path / f"{number}.sock"
        async with serving(app, path):
            with pytest.raises(Rejected):
                await upload_blob(path, DATA)


async def test_an_upload_over_the_limit_is_not_tried_again(tmp_path):
    async with s5_process(tmp_path, "s5.max_blob_bytes=1024") as socket_path:
        with pytest.raises(TooLarge):
            await upload_blob(socket_path, DATA, deadline_seconds=10)


async def test_no_portal_is_unavailable_inside_the_deadline(tmp_path):
    with pytest.raises(Unavailable):
        await upload_blob(tmp_path / "none.sock", b"x", deadline_seconds=0.3)


@asynccontextmanager
async def s5_process(state: Path, *settings: str):
    flags = [f"node.state_dir={state}", f"node.run_dir={state}/r", "s5.listen_port=0", *settings]
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nodeapp.storage.main",
        *(part for flag in flags for part in ("--set", flag)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            while not (state / "r" / "s5.url").exists():
                assert child.returncode is None
                await asyncio.sleep(0.02)
        yield state / "r" / "s5.sock"
    finally:
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await child.wait() == 0
        assert not (state / "r" / "s5.url").exists()


async def test_the_process_keeps_blobs_over_a_restart(tmp_path):
    async with s5_process(tmp_path) as socket_path:
        assert await upload_blob(socket_path, DATA) == CID
    async with s5_process(tmp_path):
        url = (tmp_path / "r" / "s5.url").read_text()
        assert await download_blob(url, CID, max_bytes=1 << 20) == DATA


async def test_a_port_in_use_is_named(tmp_path):
    async with answering(lambda _request: None) as url:
        port = url.rpartition(":")[2]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nodeapp.storage.main",
            *("--set", f"node.state_dir={tmp_path}", "--set", f"s5.listen_port={port}"),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            _, errors = await child.communicate()
    assert child.returncode == 1
    assert b"s5.listen_port" in errors
