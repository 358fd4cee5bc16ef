"""The questions p2p asks about money, answered from the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from nodeapp.chain.gate import Gate
from nodeapp.chain.ledger import Entry, Ledger
from nodeapp.core.errors import (
    Busy,
    Corrupt,
    NodeError,
    PaymentRequired,
    Rejected,
    TooLarge,
    Unauthorised,
)
from nodeapp.core.ids import JobId, RequestId
from nodeapp.core.session import (
    Phase,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    RequestResumed,
    Session,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.steps import is_running_out
from nodeapp.core.units import BlockTime, Tokens
from nodeapp.security.wallet import address_of, verify_digest
from nodeapp.service.clock import Clock
from nodeapp.wire import ipc_chain as wire
from nodeapp.wire.ipc import Empty, ErrorBody, error_body
from nodeapp.wire.signed import domain_separator, receipt_digest

Asked = TypeVar("Asked", wire.ProducedRequest, wire.ReceiptRequest)

CONFIRMATION_SECONDS = 15.0
"""How long a renter's new session is waited for before it is called unknown."""
HELD_RETRY_SECONDS = 600.0
MAX_WAITING_OPENS = 32
"""Anybody may ask for a session number that does not exist; p2p has 256 connections to us."""
MAX_SEALED_PROMPT_BYTES = 768 << 10
"""With its envelope it must stay below what one journal record holds (1 MiB)."""


class Desk:
    """Every answer is idempotent: asking again after a lost reply changes nothing."""

    def __init__(self, ledger: Ledger, clock: Clock, gate: Gate | None = None) -> None:
        self._ledger = ledger
        self._gate = gate
        self._clock = clock
        self._active_seconds: dict[JobId, float] = {}
        self._waiting_opens = 0

    async def open_session(self, request: wire.OpenSessionRequest) -> wire.SessionView:
        """Bind the depositor's key; waits for the session to be confirmed."""
        self._check_held()
        session = await self._confirmed(request.job_id)
        if session.terms.renter != request.renter or address_of(request.renter_key) != (
            request.renter
        ):
            raise Unauthorised(f"session {request.job_id} was not paid by {request.renter}")
        if session.phase is not Phase.ACTIVE:
            raise PaymentRequired(
                f"session {request.job_id} is {session.phase}; open a new session"
            )
        if self._gate is not None:
            self._gate.check_terms(session)
            await self._gate.check_price(session)

        def bind() -> list[Entry]:
            is_bound = self._ledger.session(request.job_id).renter_key == request.renter_key
            return [] if is_bound else [RenterAuthenticated(request.job_id, request.renter_key)]

        await self._ledger.decide(bind)
        return self._touch(request.job_id)

    async def view(self, request: wire.JobRequest) -> wire.SessionView:
        """The session as it stands."""
        return session_view(self._ledger.session(request.job_id))

    async def authorise(self, request: wire.AuthoriseRequest) -> wire.Authorised:
        """Reserve; the same request id again takes the answer up where it was acknowledged."""
        job_id, size = request.job_id, len(request.sealed_prompt)
        if size > MAX_SEALED_PROMPT_BYTES:
            raise TooLarge(f"prompt has {size} bytes sealed, {MAX_SEALED_PROMPT_BYTES} allowed")
        self._check_held()
        if self._gate is not None:
            self._gate.check_new(self._ledger.session(job_id))
        await self._ledger.decide(lambda: _reservation(self._ledger.session(job_id), request))
        self._touch(job_id)
        return _authorised(self._ledger.session(job_id))

    def _check_held(self) -> None:
        if self._ledger.held:
            raise Busy(
                "this host waits for its operator to restore a backup; take another host",
                retry_after_seconds=HELD_RETRY_SECONDS,
            )

    async def produced(self, request: wire.ProducedRequest) -> Empty:
        """Journal a batch; a batch that is there already is not written twice."""
        if self._gate is not None:
            self._gate.check_running(self._ledger.session(request.job_id))
        await self._ledger.decide(lambda: _batch(self._ledger.session(request.job_id), request))
        self._touch(request.job_id)
        return Empty()

    async def produced_together(self, batch: wire.ProducedBatch) -> wire.ProducedReply:
        """Journal batches of several sessions in one write; a refused one stops no other."""
        return wire.ProducedReply(
            await self._together(batch.requests, self._running_batch, self.produced)
        )

    def _running_batch(self, request: wire.ProducedRequest) -> list[Entry]:
        session = self._ledger.session(request.job_id)
        if self._gate is not None:
            self._gate.check_running(session)
        return _batch(session, request)

    async def receipt(self, request: wire.ReceiptRequest) -> wire.ReceiptAccepted:
        """Check the renter's signature and move the acknowledged count forward."""
        session = self._ledger.session(request.job_id)
        _check_signature(session, request)
        if request.tokens > max(session.acknowledged, session.produced):
            await self._close_forgotten(session, request.tokens)
        await self._ledger.decide(lambda: _receipt(self._ledger.session(request.job_id), request))
        self._touch(request.job_id)
        return wire.ReceiptAccepted(self._ledger.session(request.job_id).acknowledged)

    async def receipts(self, batch: wire.ReceiptBatch) -> wire.ReceiptReply:
        """Receipts of several sessions in one write; a refused one stops no other."""
        errors = await self._together(batch.requests, self._signed_receipt, self.receipt)
        found = [self._ledger.sessions.get(request.job_id) for request in batch.requests]
        acknowledged = (Tokens(0) if session is None else session.acknowledged for session in found)
        return wire.ReceiptReply(tuple(acknowledged), errors)

    def _signed_receipt(self, request: wire.ReceiptRequest) -> list[Entry]:
        session = self._ledger.session(request.job_id)
        _check_signature(session, request)
        return _receipt(session, request)

    async def _together(
        self,
        requests: Sequence[Asked],
        entries: Callable[[Asked], list[Entry]],
        alone: Callable[[Asked], Awaitable[object]],
    ) -> tuple[ErrorBody | None, ...]:
        """All that fit in one write; what does not is asked alone, which says why.

        Whoever is refused must not cost the others a write each: anybody who pays for one session
        can be refused as often as it likes.

        Raises:
            Unavailable: nothing could be written; it may be asked again.
        """
        try:
            apart = await self._write(requests, entries, is_checked=False)
        except Rejected:
            apart = await self._write(requests, entries, is_checked=True)
        errors: list[ErrorBody | None] = []
        for place, request in enumerate(requests):
            if place in apart:
                errors.append(await _said(alone(request)))
            else:
                self._touch(request.job_id)
                errors.append(None)
        return tuple(errors)

    async def _write(
        self,
        requests: Sequence[Asked],
        entries: Callable[[Asked], list[Entry]],
        *,
        is_checked: bool,
    ) -> frozenset[int]:
        """One write; the places of those left out. All must fit unless each is checked first."""
        apart: set[int] = set()

        def choose() -> list[Entry]:
            chosen: list[Entry] = []
            seen: set[JobId] = set()
            for place, request in enumerate(requests):
                if request.job_id in seen:  # it follows what is only being written
                    apart.add(place)
                    continue
                seen.add(request.job_id)
                try:
                    one = entries(request)
                    if is_checked:
                        self._ledger.check(one)
                except Rejected:
                    if not is_checked:
                        raise
                    apart.add(place)
                else:
                    chosen += one
            return chosen

        await self._ledger.decide(choose)
        return frozenset(apart)

    async def _close_forgotten(self, session: Session, tokens: int) -> None:
        """Tokens are journalled before they are sent, so this journal is older than the receipt.

        What came after is not known and cannot be proven: what is known is claimed, the rest goes
        back to the renter.
        """
        job_id = session.terms.job_id
        await self._close(job_id, "restored journal")
        raise PaymentRequired(
            f"the receipt is for {tokens} tokens of session {job_id}, this host knows"
            f" {session.produced}: its journal was restored from a backup. The session is settled"
            " for what is known and the rest refunded; open a new session"
        )

    async def end_request(self, request: wire.EndRequest) -> Empty:
        """Release the reservation."""
        await self._ledger.record(
            RequestEnded(request.job_id, RequestId(request.request_id), request.reason)
        )
        self._touch(request.job_id)
        return Empty()

    async def close_session(self, request: wire.JobRequest) -> wire.SessionView:
        """The renter is done."""
        await self._close(request.job_id, "renter")
        return session_view(self._ledger.session(request.job_id))

    async def close_idle(self, idle_seconds: float) -> None:
        """Close sessions that nobody used for so long; a request left open ends with them."""
        now = self._clock.monotonic_seconds()
        for job_id, session in list(self._ledger.unsettled.items()):
            if session.phase is not Phase.ACTIVE:
                self._active_seconds.pop(job_id, None)
                continue
            if now - self._active_seconds.setdefault(job_id, now) >= idle_seconds:
                await self._close(job_id, "idle")

    async def close_running_out(self, now: BlockTime) -> None:
        """Close sessions whose time on chain ends, while their last claim can still be mined."""
        for job_id, session in list(self._ledger.unsettled.items()):
            if is_running_out(session, now):
                await self._close(job_id, "duration")

    async def _close(self, job_id: JobId, reason: str) -> None:
        await self._ledger.decide(lambda: _closing(self._ledger.session(job_id), reason))

    async def _confirmed(self, job_id: JobId) -> Session:
        if job_id not in self._ledger.sessions:
            if self._waiting_opens >= MAX_WAITING_OPENS:
                raise Busy(
                    f"{MAX_WAITING_OPENS} new sessions are waited for", retry_after_seconds=2
                )
            self._waiting_opens += 1
            try:
                await self._wait_for(job_id)
            finally:
                self._waiting_opens -= 1
        return self._ledger.session(job_id)

    async def _wait_for(self, job_id: JobId) -> None:
        older = await self._ledger.archived(job_id)
        if older and older[-1].session.phase is not Phase.VANISHED:
            raise PaymentRequired(
                f"session {job_id} is {older[-1].session.phase}; open a new session"
            )
        if await self._appears(job_id):
            return
        if self._gate is not None:
            # An endpoint may have left its creation out.
            await self._gate.find(job_id)
        if job_id not in self._ledger.sessions:
            raise PaymentRequired(f"session {job_id} is not confirmed, or not with this host")

    async def _appears(self, job_id: JobId) -> bool:
        try:
            async with asyncio.timeout(CONFIRMATION_SECONDS):
                while job_id not in self._ledger.sessions:
                    await self._ledger.wait_for_change()
        except TimeoutError:
            return False
        return True

    def _touch(self, job_id: JobId) -> wire.SessionView:
        self._active_seconds[job_id] = self._clock.monotonic_seconds()
        return session_view(self._ledger.session(job_id))


def _reservation(session: Session, request: wire.AuthoriseRequest) -> list[Entry]:
    job_id, request_id = request.job_id, RequestId(request.request_id)
    if session.request is not None and session.request.request_id == request_id:
        return [RequestResumed(job_id, request_id)]
    room = session.affordable - session.acknowledged
    granted = Tokens(min(request.max_tokens, max(room, 1)))
    return [
        *_ended(session, "superseded"),
        RequestAuthorised(job_id, request_id, granted, request.sealed_prompt),
    ]


def _batch(session: Session, request: wire.ProducedRequest) -> list[Entry]:
    ids = tuple(request.token_ids)
    if request.first_token == session.produced:
        return [TokensProduced(request.job_id, RequestId(request.request_id), ids)]
    if session.ids(Tokens(request.first_token), len(ids)) != ids:
        raise PaymentRequired(f"tokens from {request.first_token} do not follow {session.produced}")
    return []


def _check_signature(session: Session, request: wire.ReceiptRequest) -> None:
    """A receipt that says nothing new is not looked at."""
    if request.tokens <= session.acknowledged:
        return
    terms = session.terms
    separator = domain_separator(terms.chain_id, terms.marketplace)
    digest = receipt_digest(separator, request.job_id, request.tokens, request.running_hash)
    verify_digest(digest, request.signature, terms.renter)


def _receipt(session: Session, request: wire.ReceiptRequest) -> list[Entry]:
    if request.tokens <= session.acknowledged:
        return []
    return [
        RenterSentReceipt(
            request.job_id, Tokens(request.tokens), request.running_hash, request.signature
        )
    ]


async def _said(work: Awaitable[object]) -> ErrorBody | None:
    try:
        await work
    except Corrupt:
        raise
    except NodeError as error:
        return error_body(error)
    return None


def _closing(session: Session, reason: str) -> list[Entry]:
    if session.phase is not Phase.ACTIVE:
        return []
    return [*_ended(session, reason), SessionClosing(session.terms.job_id, reason)]


def _ended(session: Session, reason: str) -> list[Entry]:
    request = session.request
    if request is None:
        return []
    return [RequestEnded(session.terms.job_id, request.request_id, reason)]


def _authorised(session: Session) -> wire.Authorised:
    request = session.request
    if request is None:
        raise PaymentRequired(f"session {session.terms.job_id} ended meanwhile")
    return wire.Authorised(
        max_tokens=request.max_tokens,
        first_token=request.first_token,
        acknowledged=session.acknowledged,
        running_hash=session.running_hash,
        delivered_ids=session.delivered_ids(),
    )


def session_view(session: Session) -> wire.SessionView:
    """A session as other processes see it."""
    terms, request = session.terms, session.request
    return wire.SessionView(
        job_id=terms.job_id,
        phase=session.phase.value,
        renter=terms.renter,
        model_id=terms.model_id,
        asset=terms.asset,
        deposit=terms.deposit,
        price_per_token=terms.price_per_token,
        affordable=session.affordable,
        acknowledged=session.acknowledged,
        produced=session.produced,
        claimed=session.claimed,
        running_hash=session.running_hash,
        proof_interval=terms.proof_interval,
        open_request=request.request_id if request else "",
        open_request_first=request.first_token if request else Tokens(0),
        claims=len(session.mined_claims),
        host_earnings=session.host_earnings,
        refund=session.refund,
    )
