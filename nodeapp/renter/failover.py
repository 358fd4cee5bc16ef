"""One answer from whichever host gives it: when a host is lost the next one goes on.

The tokens received so far travel along as ids, so the second host continues the very same answer;
each host is paid for the tokens it delivered, and none twice. The lost host's session is left to
it: it claims what was acknowledged and the rest comes back when it settles or times out.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

import msgspec

from nodeapp.core.errors import (
    Busy,
    NodeError,
    NotFound,
    PaymentRequired,
    ProtocolViolation,
    Unavailable,
)
from nodeapp.core.ids import Address, ModelId
from nodeapp.renter.answer import Question
from nodeapp.renter.events import AnswerEnded, AnyEvent, FailedOver, Report, TokensReceived
from nodeapp.renter.record import SessionRecord
from nodeapp.renter.run import Renter

CLOSE_SECONDS = 5.0
HOST_FAULTS = (Unavailable, Busy, NotFound, ProtocolViolation)
"""What another host may do better; everything else is about the question or the money."""


@dataclass(slots=True)
class _Told:
    """The answer so far, over all its hosts."""

    report: Report
    ids: tuple[int, ...] = ()
    text: str = ""
    last: AnswerEnded | None = None
    failed: dict[Address, None] = field(default_factory=dict)

    def listen(self, event: AnyEvent) -> None:
        """Pass on what one host reports; its end is not the end of the answer's report yet."""
        if isinstance(event, AnswerEnded):
            self.last = event
            return
        if isinstance(event, TokensReceived):
            self.text += event.text
        self.report(event)


async def ask_anywhere(
    renter: Renter, kept: SessionRecord | None, model_id: ModelId, question: Question
) -> SessionRecord:
    """One question, on a kept session while that is of use, else on new ones.

    Returns:
        The session that ended the answer, for further questions.

    Raises:
        Rejected: the question cannot be answered, or no money is left.
        Unavailable: no host was left to ask.
    """
    told = _Told(renter.report)
    record = kept
    while True:
        if record is None:
            record = await renter.pay(model_id, avoid=frozenset(told.failed))
        try:
            is_answered = await _ask_one(renter, told, record, model_id, question)
        except PaymentRequired:
            # Used up, or being closed by the host although the chain has it active still.
            if record is not kept:
                raise
            with contextlib.suppress(NodeError):  # the host closes idle sessions by itself
                await renter.asker(record, renter.report).close(patience_seconds=CLOSE_SECONDS)
            kept = record = None
            continue
        if is_answered:
            _finish(renter, told, record)
            return record
        record = None


async def _ask_one(
    renter: Renter, told: _Told, record: SessionRecord, model_id: ModelId, question: Question
) -> bool:
    """Whether this host ended the answer; False: it is given up and there is another to ask."""
    start, host = len(record.token_ids), record.head.host
    asker = renter.asker(record, told.listen)
    rest = replace(question, max_tokens=question.max_tokens - len(told.ids), continue_ids=told.ids)
    try:
        await asker.ask(rest, patience_seconds=renter.settings.failover_seconds)
    except HOST_FAULTS as error:
        renter.standings.failed(host, renter.clock.unix_seconds())
        tried = {*told.failed, host}
        if len(tried) < renter.settings.max_hosts and await renter.others(model_id, tried):
            told.failed[host] = None
            received = len(record.token_ids) - start
            renter.report(FailedOver(error.message, host, len(told.ids) + received))
            return False
        await asker.ask(rest, patience_seconds=renter.settings.resume_seconds)
    finally:
        told.ids += tuple(record.token_ids[start:])
    return True


def _finish(renter: Renter, told: _Told, record: SessionRecord) -> None:
    ended = told.last
    if ended is None:
        raise RuntimeError("an answer ended without its report")
    renter.standings.answered(
        record.head.host,
        renter.clock.unix_seconds(),
        tokens_per_second=ended.tokens_per_second,
        first_token_seconds=ended.first_token_seconds,
    )
    renter.report(
        msgspec.structs.replace(
            ended, answer=told.text, tokens=len(told.ids), hosts=len(told.failed) + 1
        )
    )
