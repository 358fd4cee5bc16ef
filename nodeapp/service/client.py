"""The asking side of a process's Unix socket: deadlines, typed errors, streams."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import aiohttp
import msgspec
import stamina
import structlog

from nodeapp.core.errors import Unavailable
from nodeapp.service.clock import Deadline
from nodeapp.wire import ipc

Reply = TypeVar("Reply")
_encode = msgspec.msgpack.Encoder().encode
_TRANSPORT_ERRORS = (
    aiohttp.ClientError,
    ConnectionError,
    asyncio.IncompleteReadError,
    OSError,
    RuntimeError,  # aiohttp 3.14.5: "Connection closed." on a read after the session closed
)


class RpcClient:
    """One other process, reached by its Unix socket. Use as an async context manager."""

    def __init__(self, socket_path: Path, process: str) -> None:
        self._path = socket_path
        self._process = process
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=str(self._path), limit=256),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        path: str,
        message: ipc.Message,
        reply: type[Reply],
        *,
        deadline_seconds: float,
        retry: bool = False,
    ) -> Reply:
        """Ask once, or until the deadline when `retry` (the endpoint must be idempotent).

        Raises:
            NodeError: what the other side answered.
            Unavailable: not reachable, restarting, or the deadline passed.
        """
        body = _encode(message)
        deadline = Deadline.after(deadline_seconds)
        try:
            return await self._once("POST", path, body, reply, deadline_seconds)
        except Unavailable as error:
            if not retry:
                raise
            failure = error
        try:
            # stamina's own timeout is looked at before a pause, not after it.
            async with asyncio.timeout(deadline.remaining_seconds()):
                async for attempt in stamina.retry_context(
                    on=Unavailable, attempts=None, timeout=None, wait_initial=0.05, wait_max=1.0
                ):
                    with attempt:
                        try:
                            left = deadline.remaining_seconds()
                            return await self._once("POST", path, body, reply, left)
                        except Unavailable as error:
                            failure = error
                            raise
        except TimeoutError as error:
            raise failure from error
        raise failure

    async def get(self, path: str, reply: type[Reply], *, deadline_seconds: float) -> Reply:
        """Ask a read-only JSON query."""
        return await self._once("GET", path, None, reply, deadline_seconds)

    async def _once(
        self, method: str, path: str, body: bytes | None, reply: type[Reply], seconds: float
    ) -> Reply:
        try:
            async with asyncio.timeout(seconds):
                async with self._request(method, path, body, seconds) as response:
                    return _decode(response, await response.read(), reply)
        except TimeoutError as error:
            raise Unavailable(f"{self._process}{path}: no answer inside {seconds:g} s") from error
        except _TRANSPORT_ERRORS as error:
            raise self._unreachable(error) from error

    @asynccontextmanager
    async def stream(
        self, path: str, message: ipc.Message, event: type[Reply], *, deadline_seconds: float
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        """Open a stream of events; leaving the block closes it, which the other side notices.

        Raises:
            NodeError: refused, or an error frame in mid-stream.
            Unavailable: the other process is gone or ended without an END frame.
        """
        body = _encode(message)
        try:
            async with self._request("POST", path, body, deadline_seconds) as response:
                if response.status != 200:
                    _decode(response, await response.read(), ipc.Empty)
                yield self._events(response, event)
        except _TRANSPORT_ERRORS as error:
            raise self._unreachable(error) from error

    async def _events(
        self, response: aiohttp.ClientResponse, event: type[Reply]
    ) -> AsyncIterator[Reply]:
        decode = msgspec.msgpack.Decoder(event).decode
        received = bytearray()
        while True:
            for kind, body in ipc.take_frames(received):
                if kind == ipc.FRAME_END:
                    return
                if kind == ipc.FRAME_ERROR:
                    raise ipc.error_from_body(msgspec.msgpack.decode(body, type=ipc.ErrorBody))
                yield decode(body)
            chunk = await response.content.readany()
            if not chunk:
                raise asyncio.IncompleteReadError(bytes(received), None)
            received += chunk

    def _request(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            raise Unavailable(f"client of {self._process} is not open")
        context = structlog.contextvars.get_contextvars()
        return self._session.request(
            method,
            f"http://{self._process}{path}",
            data=body,
            headers={
                "Content-Type": ipc.CONTENT_TYPE,
                ipc.DEADLINE_HEADER: str(int(seconds * 1000)),
                ipc.REQUEST_ID_HEADER: str(context.get("request_id", "")),
            },
        )

    def _unreachable(self, error: BaseException) -> Unavailable:
        return Unavailable(f"{self._process} is not reachable: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """In words where the kernel tells; without the path, which renters need not see."""
    number = error.os_error.errno if isinstance(error, aiohttp.ClientConnectorError) else None
    if number in {errno.ENOENT, errno.ECONNREFUSED}:
        return "it does not run"
    return type(error).__name__ if number is None else os.strerror(number).lower()


def _decode(response: aiohttp.ClientResponse, body: bytes, reply: type[Reply]) -> Reply:
    if response.status == 200:
        is_json = response.content_type == "application/json"
        decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
        try:
            return decode(body, type=reply)
        except msgspec.DecodeError as error:
            raise Unavailable(
                f"{response.url.path}: answer is no {reply.__name__} ({error});"
                " do all processes run the same version?"
            ) from error
    try:
        raise ipc.error_from_body(msgspec.msgpack.decode(body, type=ipc.ErrorBody))
    except msgspec.DecodeError as error:
        raise Unavailable(f"{response.url.path}: status {response.status}") from error
