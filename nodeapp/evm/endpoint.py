"""One RPC address: posting requests to it, and what is known about it.

It is asked for its chain id before its first answer counts, and again after every failure: behind
one address may stand another node the next time. Texts name scheme, host and port only, an
address may carry a secret in its path. Every failure is an Unavailable and lets the endpoint rest.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import aiohttp
import msgspec
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint

from nodeapp.core.errors import InvalidRequest, Rejected, Unavailable
from nodeapp.evm.errors import WrongShape
from nodeapp.evm.health import LONGEST_REST_SECONDS, Health, LogSpan, TokenBucket
from nodeapp.evm.rpc import (
    METHOD_MISSING,
    Block,
    Decode,
    Decoded,
    Meaning,
    Request,
    RpcAnswer,
    as_quantity,
    meaning_of,
    read_answer,
)

MAX_ANSWER_BYTES = 64 << 20
LIMITED_SECONDS = 5.0
"""An endpoint over its rate limit that does not say how long is left alone for so long."""
NO_BLOCK = -1
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_RETRY_LATER = frozenset({429, 503})


class WrongChain(Rejected):
    """The endpoint serves another chain."""


class LogsTooLarge(Rejected):
    """A log query was over the endpoint's limit: ask for fewer blocks."""


def endpoint_name(url: str, schemes: frozenset[str] = frozenset({"http", "https"})) -> str:
    """Scheme, host and port: what may be shown of an RPC address.

    Raises:
        InvalidRequest: not an address of these schemes.
    """
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        wanted = " or ".join(sorted(schemes))
        raise InvalidRequest(f"rpc address with scheme {parts.scheme!r} is not {wanted}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class Endpoint:
    """State is changed by its own answers only; one event loop uses it."""

    def __init__(
        self,
        url: str,
        *,
        chain_id: int,
        call_timeout_seconds: float = 10.0,
        requests_per_second: float = 0.0,
    ) -> None:
        self.name = endpoint_name(url)
        self.health = Health()
        self.head = NO_BLOCK
        """Its newest block as it said last."""
        self.log_span = LogSpan()
        self.note = ""
        """Why it is not asked, for people; empty while it is."""
        self._url = url
        self._chain_id = chain_id
        self._timeout_seconds = call_timeout_seconds
        is_local = urlsplit(url).hostname in LOOPBACK
        self._budget = TokenBucket(0.0 if is_local else requests_per_second)
        self._must_rest_until = 0.0
        self._is_verified = False
        self._can_batch = True
        self._forming = AsyncHTTPProvider(url)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def must_rest(self, now: float) -> bool:
        """Whether it asked to be left alone (Retry-After, rate limit)."""
        return self._must_rest_until > now

    async def read(self, request: Request, decode: Decode[Decoded]) -> Decoded | RpcAnswer:
        """Ask once; the decoded result, or the answer with a failure that is a true answer.

        Raises:
            LogsTooLarge: a log query over its limit.
            WrongChain: it serves another chain.
            Unavailable: no answer that can be used.
        """
        (answer,) = await self.ask((request,))
        return self.judge(request, answer, decode)

    def judge(
        self, request: Request, answer: RpcAnswer, decode: Decode[Decoded]
    ) -> Decoded | RpcAnswer:
        """Decode one answer; an unusable one counts against the endpoint.

        Raises:
            LogsTooLarge: a log query over its limit.
            Unavailable: an answer that cannot be used.
        """
        if answer.failure is None:
            try:
                return decode(answer.result)
            except WrongShape as error:
                self.fail(f"{request.method} answered {error.message}")
                raise
        text = answer.failure.message
        match meaning_of(request.method, answer.failure):
            case Meaning.ANSWER:
                return answer
            case Meaning.TOO_LARGE:
                raise LogsTooLarge(text)
            case Meaning.LACKING:
                self.head = NO_BLOCK
            case Meaning.LIMITED:
                self.fail(text, must_rest=True)
            case Meaning.BROKEN if answer.failure.code != METHOD_MISSING:
                self.fail(text)
            case _:
                pass
        raise Unavailable(text)

    async def ask(self, requests: Sequence[Request]) -> tuple[RpcAnswer, ...]:
        """Answers in the order of the requests; more than one go as a batch where it can.

        Raises:
            WrongChain: it serves another chain.
            Unavailable: no answer.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.sleep(self._budget.wait_seconds(loop.time(), len(requests)))
                await self._verify()
                began = loop.time()
                answers = await self._exchange(requests)
        except WrongShape as error:
            self.fail(error.message)
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self.fail(_describe(error))
            raise Unavailable(self.note) from error
        self.health = self.health.succeeded(loop.time() - began)
        self.note = ""
        return answers

    def fail(self, reason: str, *, retry_after_seconds: float = 0, must_rest: bool = False) -> None:
        """Count a failure and let it rest; its chain id is asked for again."""
        now = asyncio.get_running_loop().time()
        self._is_verified = False
        self.note = reason
        self.health = self.health.failed(
            now, jitter=secrets.randbelow(1000) / 1000, retry_after_seconds=retry_after_seconds
        )
        if must_rest or retry_after_seconds:
            asked = min(retry_after_seconds or LIMITED_SECONDS, LONGEST_REST_SECONDS)
            self._must_rest_until = now + asked

    def saw(self, block: Block | None) -> None:
        """Remember the newest block it told."""
        self.head = NO_BLOCK if block is None else block.number

    async def refresh_head(self) -> int:
        """Ask for its newest block's number.

        Raises:
            WrongChain: it serves another chain.
            Unavailable: no answer that can be used.
        """
        number = await self.read(Request("eth_blockNumber", ()), as_quantity)
        self.head = NO_BLOCK if isinstance(number, RpcAnswer) else number
        return self.head

    async def _verify(self) -> None:
        if self._is_verified:
            return
        (answer,) = await self._exchange((Request("eth_chainId", ()),))
        if answer.failure is not None:
            raise ValueError(answer.failure.message)
        served = as_quantity(answer.result)
        if served != self._chain_id:
            self.fail(f"serves chain id {served}, expected {self._chain_id}")
            raise WrongChain(f"rpc endpoint {self.name} {self.note}")
        self._is_verified = True

    async def _exchange(self, requests: Sequence[Request]) -> tuple[RpcAnswer, ...]:
        if len(requests) > 1 and self._can_batch:
            answers = await self._batch(requests)
            if answers is not None:
                return answers
            self._can_batch = False
        return tuple([await self._single(request) for request in requests])

    async def _single(self, request: Request) -> RpcAnswer:
        number, body = self._form(request)
        answer = await self._post(body)
        self._check_number(answer, {number})
        return read_answer(answer)

    async def _batch(self, requests: Sequence[Request]) -> tuple[RpcAnswer, ...] | None:
        """None when it does not do batches."""
        formed = [self._form(request) for request in requests]
        try:
            found = await self._post(b"[" + b",".join(body for _, body in formed) + b"]")
        except aiohttp.ClientResponseError as error:
            if error.status in {400, 404, 405, 413, 415, 501}:
                return None
            raise
        if not isinstance(found, list) or len(found) != len(formed):
            return None
        numbers = {number for number, _ in formed}
        by_number: dict[object, object] = {}
        for answer in found:
            self._check_number(answer, numbers)
            by_number[answer.get("id")] = answer
        if len(by_number) != len(formed) or None in by_number:
            return None
        return tuple(read_answer(by_number[number]) for number, _ in formed)

    def _form(self, request: Request) -> tuple[int, bytes]:
        formed = self._forming.form_request(RPCEndpoint(request.method), list(request.params))
        return int(str(formed["id"])), self._forming.encode_rpc_dict(formed)

    def _check_number(self, answer: object, numbers: set[int]) -> None:
        if not isinstance(answer, Mapping):
            raise WrongShape("answer is no json object")
        number = answer.get("id")
        # A request that it could not read is answered without a number.
        if number not in numbers and not (number is None and answer.get("error") is not None):
            raise ValueError(f"answer to another request (id {str(number)[:20]})")

    async def _post(self, body: bytes) -> object:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=16), cookie_jar=aiohttp.DummyCookieJar()
            )
        headers = {"Content-Type": "application/json"}
        async with self._session.post(
            self._url, data=body, headers=headers, allow_redirects=False
        ) as reply:
            content = await _content(reply)
            if reply.status in _RETRY_LATER:
                self._told_to_wait(reply)
        try:
            found = msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            reason = "answer is not json" if reply.ok else f"http status {reply.status}"
            raise ValueError(reason) from error
        # A refusal in words often comes with an http status of its own.
        if not reply.ok and not (isinstance(found, Mapping) and found.get("error")):
            raise aiohttp.ClientResponseError(reply.request_info, (), status=reply.status)
        return found

    def _told_to_wait(self, reply: aiohttp.ClientResponse) -> None:
        text = f"http status {reply.status}"
        seconds = _seconds(reply.headers.get("Retry-After", ""))
        self.fail(text, retry_after_seconds=seconds, must_rest=reply.status == 429)
        raise Unavailable(text)


async def _content(reply: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in reply.content.iter_any():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds; the form with a date is rare here and taken as "not said"."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else 0.0


def _describe(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "timed out"
        case aiohttp.ClientResponseError():
            return f"http status {error.status}"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {error.os_error.strerror}"
        case aiohttp.ClientError():
            return type(error).__name__
        case _:
            return str(error)[:200] or type(error).__name__
