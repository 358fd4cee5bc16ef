"""A far web server with one file, which misbehaves as told; every request's headers are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class FileServer:
    data: bytes
    etag: str = '"v1"'
    takes_ranges: bool = True
    says_length: bool = True
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the n-th answer's connection is cut."""
    statuses: list[int] = field(default_factory=list)
    """Answered first, one a request."""
    redirect: str = ""
    taken: Callable[[], int] = lambda: 1 << 62
    """How much the client has: a connection is cut after it took what was sent."""
    requests: list[dict[str, str]] = field(default_factory=list)
    runner: web.AppRunner | None = None

    async def start(self) -> str:
        app = web.Application()
        app.router.add_get("/{name:.*}", self._answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self.runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.headers) | {"path": request.path_qs})
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        if self.redirect:
            target, self.redirect = self.redirect, ""
            return web.Response(status=302, headers={"Location": target})
        return await self._send(request)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        start = self._start(request)
        if start and start >= len(self.data):
            headers = {"Content-Range": f"bytes */{len(self.data)}"}
            return web.Response(status=416, headers=headers)
        body = self.data[start:]
        response = web.StreamResponse(status=206 if start else 200)
        if self.etag:
            response.headers["ETag"] = self.etag
        if start:
            end = len(self.data) - 1
            response.headers["Content-Range"] = f"bytes {start}-{end}/{len(self.data)}"
        if self.says_length:
            response.content_length = len(body)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        cut = self.break_after.pop(0) if self.break_after else None
        await response.write(body[:cut])
        if cut is not None:
            async with asyncio.timeout(5):
                while self.taken() < start + len(body[:cut]):
                    await asyncio.sleep(0.001)
            request.transport.close()
            return response
        await response.write_eof()
        return response

    def _start(self, request: web.Request) -> int:
        asked = request.headers.get("Range", "")
        same = request.headers.get("If-Range", self.etag) == self.etag
        if not (asked and self.takes_ranges and same):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))
