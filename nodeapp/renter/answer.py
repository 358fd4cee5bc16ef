"""Ask one question and receive the answer exactly once, also across a host that restarts.

Received tokens are on disk before the receipt for them is signed. After a lost connection the
renter first presents its newest receipt, then asks for the same request id: the host goes on
with the token after the last one received.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from nodeapp.core.errors import (
    Busy,
    NodeError,
    PaymentRequired,
    ProtocolViolation,
    Unavailable,
    leaves,
)
from nodeapp.core.session import Phase
from nodeapp.evm.accounts import Wallet
from nodeapp.network.host import Libp2pHost
from nodeapp.renter.events import (
    AnswerEnded,
    AnswerStarted,
    Connected,
    Pace,
    Reconnecting,
    Report,
    TokensReceived,
)
from nodeapp.renter.link import Link, open_link
from nodeapp.renter.record import SessionRecord
from nodeapp.service.clock import Clock, Deadline
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.ipc_inference import Alternative, GenerateRequest, TokenLogprob
from nodeapp.wire.signed import domain_separator, receipt_digest

RECEIPT_EVERY_TOKENS = 16


async def unpaced() -> None:
    """Whoever is reported to takes everything at once."""


RECONNECT_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; `rules` brings turns and sampling of its own, tools, a schema and stops."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    rules: GenerateRequest | None = None
    continue_ids: tuple[int, ...] = ()
    """Ids of this answer that another host gave; the answer goes on after them."""


@dataclass(slots=True)
class _Progress:
    """One answer so far; survives reconnects."""

    request_id: str
    begun_seconds: float
    session_start: int
    session_end: int
    """No token from here on was asked for, so none is acknowledged."""
    asked_seconds: float = 0.0
    """When the question was first sent; 0: not yet."""
    pieces: list[str] = field(default_factory=list)
    first_token_seconds: float = 0.0
    last_token_seconds: float = 0.0
    receipted: int = 0
    reconnects: int = 0


class Asker:
    """Asks one question on one paid session; asking again takes the same answer up."""

    def __init__(
        self,
        host: Libp2pHost,
        wallet: Wallet,
        record: SessionRecord,
        *,
        clock: Clock,
        report: Report,
        pace: Pace = unpaced,
    ) -> None:
        self._host = host
        self._wallet = wallet
        self._record = record
        self._progress: _Progress | None = None
        self._clock = clock
        self._report = report
        self._pace = pace
        head = record.head
        self._separator = domain_separator(head.chain_id, head.marketplace)

    async def ask(self, question: Question, *, patience_seconds: float) -> AnswerEnded:
        """Stream one answer; reconnects for `patience_seconds` after the last progress.

        Raises:
            Rejected: the host refuses (no money, unknown model, prompt too long …).
            Unavailable: the host did not come back.
        """
        progress = self._progress = self._progress or self._begin(question)
        start = progress.session_start
        deadline = Deadline.after(patience_seconds, self._clock)
        while True:
            received = len(self._record.token_ids)
            try:
                return await self._attempt(question, progress)
            except (Unavailable, Busy) as error:
                if len(self._record.token_ids) > received:
                    deadline = Deadline.after(patience_seconds, self._clock)
                if not deadline.remaining_seconds():
                    raise
                progress.reconnects += 1
                self._report(Reconnecting(error.message, len(self._record.token_ids) - start))
                await asyncio.sleep(_pause_seconds(error, deadline))

    def _begin(self, question: Question) -> _Progress:
        start = len(self._record.token_ids)
        now = self._clock.monotonic_seconds()
        return _Progress(
            secrets.token_hex(16), now, start, start + question.max_tokens, receipted=start
        )

    async def close(self, *, patience_seconds: float) -> pb.SessionState:
        """Tell the host that the session is over; it claims and completes where that pays it.

        Raises:
            Unavailable: the host did not come back; it will close by itself when idle.
        """
        deadline = Deadline.after(patience_seconds, self._clock)
        was_lost = False
        while True:
            try:
                return await self._close_once()
            except (Unavailable, Busy) as error:
                if not deadline.remaining_seconds():
                    raise
                was_lost = True
                await asyncio.sleep(_pause_seconds(error, deadline))
            except PaymentRequired:
                if not was_lost:
                    raise
                # Only the reply was lost: the session is not active any more.
                return pb.SessionState(
                    job_id=self._record.head.job_id,
                    phase=Phase.CLOSING,
                    acknowledged=len(self._record.token_ids),
                )

    async def _close_once(self) -> pb.SessionState:
        async with open_link(self._host, self._record.head, self._wallet) as (link, state):
            if len(self._record.token_ids) > state.acknowledged:
                await self._send_receipt(link)
            await link.send(close=pb.Close(job_id=self._record.head.job_id))
            return (await link.expect("session_state")).session_state

    async def _attempt(self, question: Question, progress: _Progress) -> AnswerEnded:
        try:
            async with AsyncExitStack() as stack:
                opened = open_link(self._host, self._record.head, self._wallet)
                link, state = await stack.enter_async_context(opened)
                self._report(Connected(state.affordable, state.acknowledged))
                if len(self._record.token_ids) > state.acknowledged:
                    await self._send_receipt(link)
                progress.asked_seconds = progress.asked_seconds or self._clock.monotonic_seconds()
                await link.send(generate=_generate(question, self._record, progress.request_id))
                async with asyncio.TaskGroup() as tasks:
                    pinger = tasks.create_task(link.keep_alive())
                    end = await self._receive(link, progress)
                    await self._let_receipt_arrive(link)
                    pinger.cancel()
                return self._ended(end, progress)
        except* NodeError as group:
            raise leaves(group)[0] from None

    async def _let_receipt_arrive(self, link: Link) -> None:
        """Leaving resets the stream, and what is under way would be lost with it."""
        try:
            await link.confirm()
        except Unavailable:
            # The answer is whole; the next contact begins with the newest receipt.
            return

    async def _receive(self, link: Link, progress: _Progress) -> pb.End:
        while True:
            message = await link.receive()
            match message.WhichOneof("body"):
                case "started":
                    started = message.started
                    self._report(
                        AnswerStarted(progress.request_id, started.max_tokens, started.first_token)
                    )
                case "tokens":
                    await self._take(message.tokens, progress)
                    await self._pace()
                    held = len(self._record.token_ids) - progress.receipted
                    if held >= RECEIPT_EVERY_TOKENS:
                        await self._send_receipt(link)
                        progress.receipted = len(self._record.token_ids)
                case "end":
                    await self._send_receipt(link)
                    return message.end
                case other:
                    raise ProtocolViolation(f"host sent {other} in an answer")

    async def _take(self, tokens: pb.Tokens, progress: _Progress) -> None:
        ids = tuple(tokens.ids)
        if tokens.first_token + len(ids) > progress.session_end:
            raise ProtocolViolation(
                f"host sent more than the {progress.session_end - progress.session_start} tokens"
                " asked for; they are not acknowledged"
            )
        new = await asyncio.to_thread(self._record.receive, tokens.first_token, ids)
        if len(new) not in (0, len(ids)):
            raise ProtocolViolation(f"host repeated some of the tokens from {tokens.first_token}")
        if not new:
            return
        now = self._clock.monotonic_seconds() - progress.asked_seconds
        progress.first_token_seconds = progress.first_token_seconds or now
        progress.last_token_seconds = now
        progress.pieces.append(tokens.text)
        logprobs = tuple(_logprob(entry) for entry in tokens.logprobs)
        self._report(TokensReceived(len(new), tokens.text, round(now, 4), logprobs))

    async def _send_receipt(self, link: Link) -> None:
        head, count = self._record.head, len(self._record.token_ids)
        running = self._record.running_hash
        digest = receipt_digest(self._separator, head.job_id, count, running)
        await link.send(
            receipt=pb.Receipt(
                job_id=head.job_id,
                tokens=count,
                running_hash=running,
                signature=self._wallet.sign_digest(digest),
            )
        )

    def _ended(self, end: pb.End, progress: _Progress) -> AnswerEnded:
        total = len(self._record.token_ids)
        tokens = total - progress.session_start
        spent = progress.last_token_seconds - progress.first_token_seconds
        ended = AnswerEnded(
            job_id=self._record.head.job_id,
            request_id=progress.request_id,
            answer="".join(progress.pieces),
            finish_reason=end.finish_reason,
            prompt_tokens=end.prompt_tokens,
            tokens=tokens,
            session_tokens=total,
            connect_seconds=round(progress.asked_seconds - progress.begun_seconds, 4),
            first_token_seconds=round(progress.first_token_seconds, 4),
            tokens_per_second=round((tokens - 1) / spent, 2) if spent > 0 else 0.0,
            reconnects=progress.reconnects,
            cached_tokens=end.cached_tokens,
        )
        self._report(ended)
        return ended


def _pause_seconds(error: NodeError, deadline: Deadline) -> float:
    """What the host asks for, inside our own deadline: it may name any number."""
    pause = error.retry_after_seconds or RECONNECT_PAUSE_SECONDS
    return min(pause, deadline.remaining_seconds())


def _generate(question: Question, record: SessionRecord, request_id: str) -> pb.Generate:
    message = pb.Generate(
        request_id=request_id,
        model_id=record.head.model_id,
        messages=[pb.Message(role=role, content=text) for role, text in question.messages],
        max_tokens=question.max_tokens,
        sampling=pb.Sampling(temperature=question.temperature),
        continue_ids=question.continue_ids,
    )
    if question.rules is not None:
        envelope.put_rules(message, question.rules)
    return message


def _logprob(entry: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(_alternative(entry.chosen), tuple(map(_alternative, entry.top)))


def _alternative(entry: pb.Alternative) -> Alternative:
    return Alternative(entry.id, entry.piece, entry.logprob)
