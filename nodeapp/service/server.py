"""The HTTP side every process shows on its Unix socket: health, metrics, typed endpoints.

Only the socket's owner and root may ask (peer credentials are checked on every request).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from nodeapp.core import errors
from nodeapp.core.audit import AuditSink, OperatorAsked, SocketRefused
from nodeapp.core.errors import Corrupt, InvalidRequest, NodeError, Unavailable
from nodeapp.service.logs import get_logger
from nodeapp.wire import ipc, openai

STATUS_OF_CODE = {
    errors.InvalidRequest.code: 400,
    errors.ProtocolViolation.code: 400,
    errors.Unauthorised.code: 401,
    errors.PaymentRequired.code: 402,
    errors.NotFound.code: 404,
    errors.Rejected.code: 409,
    errors.TooLarge.code: 413,
    errors.Busy.code: 429,
    errors.Unavailable.code: 503,
    errors.Corrupt.code: 500,
}
JSON_PATHS = ("/v1/", "/tokenize", "/detokenize", "/health")
"""Here a client may be anybody's; whoever does not send our messages gets OpenAI's error object."""
STREAM_BUFFER_BYTES = 4096
"""Small on purpose: back-pressure has to reach the producer."""

AUDIT: web.AppKey[AuditSink] = web.AppKey("audit", AuditSink)
_STREAM_ERROR: web.RequestKey[NodeError] = web.RequestKey("stream_error", NodeError)
_encode = msgspec.msgpack.Encoder().encode
_log = get_logger(__name__)

Request = TypeVar("Request", bound=ipc.Message)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def endpoint(kind: type[Request], handle: Callable[[Request], Awaitable[ipc.Message]]) -> Handler:
    """Wrap `async (message) -> message` as a POST handler."""

    async def answer(request: web.Request) -> web.StreamResponse:
        message = await _read(request, kind)
        async with _deadline(request):
            reply = await handle(message)
        return web.Response(body=_encode(reply), content_type=ipc.CONTENT_TYPE)

    return answer


def query(handle: Callable[[], Awaitable[ipc.Message]]) -> Handler:
    """Wrap `async () -> message` as a GET handler; JSON, so that people can read it."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=msgspec.json.encode(await handle()), content_type="application/json"
        )

    return answer


def stream_endpoint(
    kind: type[Request], handle: Callable[[Request], AsyncIterator[ipc.Message]]
) -> Handler:
    """Wrap an async generator as a chunked POST handler; a gone client closes the generator."""

    async def answer(request: web.Request) -> web.StreamResponse:
        message = await _read(request, kind)
        response = web.StreamResponse(headers={"Content-Type": ipc.CONTENT_TYPE})
        response.enable_chunked_encoding()
        _shrink_buffers(request)
        await response.prepare(request)
        try:
            async with aclosing(handle(message)) as events:  # type: ignore[type-var]  # generators close
                async for event in events:
                    await response.write(ipc.encode_frame(ipc.FRAME_MESSAGE, _encode(event)))
            await response.write(ipc.encode_frame(ipc.FRAME_END, b""))
        except Corrupt:
            # Cut off without an END frame: the asker comes back to the restarted process.
            if request.transport is not None:
                request.transport.abort()
            raise
        except NodeError as error:
            _log.info("stream ended with error", code=error.code, error=error.message)
            request[_STREAM_ERROR] = error
            body = _encode(ipc.error_body(error))
            await response.write(ipc.encode_frame(ipc.FRAME_ERROR, body))
        await response.write_eof()
        return response

    return answer


def operator(handler: Handler) -> Handler:
    """A verb of the operator's: who asked for it and how it ended goes into the audit log."""

    async def answer(request: web.Request) -> web.StreamResponse:
        outcome, reason = "interrupted", ""
        try:
            response = await handler(request)
            error = request.get(_STREAM_ERROR)
            outcome, reason = (error.code, error.message) if error else ("done", "")
            return response
        except NodeError as error:
            outcome, reason = error.code, error.message
            raise
        finally:
            if (audit := request.config_dict.get(AUDIT)) is not None:
                pid, uid = _peer(request) or (0, -1)
                audit.record(OperatorAsked(request.path, uid, pid, outcome, reason))

    return answer


async def _read(request: web.Request, kind: type[Request]) -> Request:
    body = await request.read()
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec 0.22 lets UnicodeDecodeError through on text that is not UTF-8.
        raise InvalidRequest(f"{request.path}: {error}") from error


def _deadline(request: web.Request) -> asyncio.Timeout:
    text = request.headers.get(ipc.DEADLINE_HEADER, "")
    return asyncio.timeout(int(text) / 1000 if text.isdigit() else None)


def _shrink_buffers(request: web.Request) -> None:
    transport = request.transport
    if not isinstance(transport, asyncio.WriteTransport):
        return
    transport.set_write_buffer_limits(high=STREAM_BUFFER_BYTES)
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER_BYTES)


@web.middleware
async def errors_to_replies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """NodeError -> status and ErrorBody; a passed deadline is Unavailable."""
    structlog.contextvars.bind_contextvars(
        request_id=request.headers.get(ipc.REQUEST_ID_HEADER, "")
    )
    try:
        return await handler(request)
    except TimeoutError:
        error: NodeError = Unavailable(f"{request.path}: deadline passed")
    except Corrupt:
        raise
    except NodeError as known:
        error = known
    headers = openai.error_headers(error)
    if request.path.startswith(JSON_PATHS) and request.content_type != ipc.CONTENT_TYPE:
        return web.Response(
            status=openai.error_status(error),
            body=openai.error_body(error),
            content_type="application/json",
            headers=headers,
        )
    return web.Response(
        status=STATUS_OF_CODE.get(error.code, 409),
        body=_encode(ipc.error_body(error)),
        content_type=ipc.CONTENT_TYPE,
        headers=headers,
    )


@web.middleware
async def same_user_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """SO_PEERCRED: the socket's mode is the first lock, this is the second."""
    peer = _peer(request)
    if peer is not None and peer[1] not in (0, os.getuid()):
        pid, uid = peer
        if (audit := request.config_dict.get(AUDIT)) is not None:
            audit.record(SocketRefused(request.path, uid, pid))
        raise errors.Unauthorised(f"user {uid} may not use this socket")
    return await handler(request)


def _peer(request: web.Request) -> tuple[int, int] | None:
    """Process and user at the other end of a Unix socket, as the kernel says; None: no such."""
    transport = request.transport
    raw = transport.get_extra_info("socket") if transport is not None else None
    if raw is None or raw.family != socket.AF_UNIX:
        return None
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", credentials)
    return pid, uid
