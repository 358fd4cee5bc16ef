"""One renter's stream: the handshake, Open, then Generate as often as it likes.

One loop is the only reader; an answer runs beside it as a task, so receipts, cancels and
the end of the stream are seen at any time. When the stream is lost in mid-answer the request
stays open in the ledger: the renter may come back with the same request id and go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import structlog

from nodeapp.core.audit import AuditSink, RenterAdmitted, RenterRefused, Unrecorded
from nodeapp.core.errors import (
    Busy,
    InvalidRequest,
    NodeError,
    NotFound,
    PaymentRequired,
    ProtocolViolation,
    Rejected,
    Unavailable,
    leaves,
)
from nodeapp.core.ids import JobId
from nodeapp.network.streams import Stream
from nodeapp.p2p.admission import Admission
from nodeapp.p2p.bans import Bans
from nodeapp.p2p.engines import Engines
from nodeapp.p2p.handshake import Renter, shake_hands
from nodeapp.p2p.live import LiveConversations
from nodeapp.p2p.offer import Offer
from nodeapp.p2p.relay import Answer, Relay, RelaySettings, begin_answer
from nodeapp.rpc.chain import ChainClient
from nodeapp.security.sealed import seal
from nodeapp.security.wallet import SIGNATURE_BYTES
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.envelope import GenerateCommand
from nodeapp.wire.ipc_chain import (
    AuthoriseRequest,
    EndRequest,
    OpenSessionRequest,
    ReceiptRequest,
    SessionView,
)

MAX_REFUSALS = 32
"""Refused messages of one stream before it ends: each one is answered and logged."""
_log = get_logger(__name__)


Choose = Callable[[int], Awaitable[tuple[Offer, ChainClient]]]
"""Offer and ledger by chain id; NotFound where nothing is sold."""


@dataclass(frozen=True, slots=True)
class Services:
    """What every conversation uses."""

    chain: ChainClient
    inference: Engines
    admission: Admission
    relay: RelaySettings
    heartbeat_seconds: float
    metrics: ConversationMetrics
    live: LiveConversations
    bans: Bans
    audit: AuditSink = field(default_factory=Unrecorded)


class ConversationMetrics:
    """Counters of the renter's side."""

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.counter("requests_total", "Answers by outcome", ("outcome",))
        self.open_requests = metrics.gauge("open_requests", "Answers being relayed")
        self.refused = metrics.counter("refused_total", "Refusals by code", ("code",))
        self.first_token = metrics.histogram("first_token_seconds", "Generate to first token")


class Conversation:
    """Serves one stream until it ends."""

    def __init__(
        self, stream: Stream, services: Services, offer: Offer, choose: Choose | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            stream: the renter's.
            services: of the host's first chain.
            offer: on that chain.
            choose: finds the offer and the ledger of another chain; None: there is no other.
        """
        self._stream = stream
        self._services = services
        self._offer = offer
        self._chain = services.chain
        self._choose = choose
        self._session: SessionView | None = None
        self._answer: Answer | None = None
        self._relay = self._new_relay()
        self._task: asyncio.Task[None] | None = None
        self._asked_seconds = 0.0
        self._is_let_go = False

    def _new_relay(self) -> Relay:
        services = self._services
        return Relay(
            self._stream, self._chain, services.inference, services.relay, self._note_first_token
        )

    def let_go(self) -> None:
        """The host stops: end after the answer that is under way, or now."""
        self._is_let_go = True
        if self._answer is None:
            self._stream.abandon()

    def hang_up(self) -> None:
        """The renter came back on another stream, so this one is dead or unwanted."""
        self._stream.abandon()

    async def run(self) -> None:
        """Talk until the renter goes; whatever it did wrong it is told before the stream ends."""
        peer = self._stream.remote_peer_id
        structlog.contextvars.bind_contextvars(peer_id=peer)
        try:
            with self._services.admission.stream(peer):
                renter = await self._admitted()
                async with asyncio.TaskGroup() as tasks:
                    await self._converse(renter, tasks)
                    if self._answer is not None:
                        # Stops the engine now; the ledger keeps the request for the return.
                        raise Unavailable("renter left in mid-answer")
                await self._stream.close()
        except* NodeError as group:
            for error in leaves(group):
                await self._refuse(error)

    async def _admitted(self) -> Renter:
        """Who it is; on record, and so is who was refused."""
        stream, audit = self._stream, self._services.audit
        try:
            renter = await shake_hands(stream, self._go_to_chain, self._services.bans.check_wallet)
        except Rejected as error:
            refused = (stream.remote_peer_id, stream.remote_address, error.code, error.message)
            audit.record(RenterRefused(*refused))
            raise
        chain_id = self._offer.host.chain_id
        audit.record(RenterAdmitted(renter.address, stream.remote_peer_id, chain_id))
        return renter

    async def _go_to_chain(self, chain_id: int) -> Offer:
        """Everything after this is about the sessions of one chain."""
        own = self._offer.host.chain_id
        if chain_id not in (0, own):
            if self._choose is None:
                raise NotFound(f"this host sells on chain {own}, not on {chain_id}")
            self._offer, self._chain = await self._choose(chain_id)
            self._relay = self._new_relay()
        return self._offer

    async def _converse(self, renter: Renter, tasks: asyncio.TaskGroup) -> None:
        refusals = 0
        while True:
            frame = await self._stream.read_frame(
                envelope.MAX_REQUEST_FRAME_BYTES, 3 * self._services.heartbeat_seconds
            )
            if frame is None:
                return
            self._services.admission.frame(self._stream.remote_peer_id)
            try:
                await self._act(envelope.decode(frame), renter, tasks)
            except (ProtocolViolation, Unavailable):
                raise
            except NodeError as error:
                refusals += 1
                if refusals > MAX_REFUSALS:
                    raise ProtocolViolation(f"{refusals} messages were refused") from error
                await self._tell(error)

    async def _act(self, message: pb.Envelope, renter: Renter, tasks: asyncio.TaskGroup) -> None:
        match message.WhichOneof("body"):
            case "open":
                await self._open(JobId(message.open.job_id), renter)
            case "generate":
                command = envelope.check_generate(message.generate)
                await self._generate(command, renter, tasks)
            case "receipt":
                await self._receipt(message.receipt)
            case "cancel":
                self._cancel(message.cancel.request_id)
            case "close":
                await self._close(JobId(message.close.job_id))
            case "ping":
                await self._send(pong=pb.Pong(nonce=message.ping.nonce))
            case other:
                raise ProtocolViolation(f"{other} is not a renter's message here")

    async def _open(self, job_id: JobId, renter: Renter) -> None:
        await self._let_answer_end()
        if self._answer is not None:
            raise Busy("an answer is under way on this stream", retry_after_seconds=1)
        request = OpenSessionRequest(
            job_id=job_id, renter=renter.address, renter_key=renter.public_key
        )
        view = await self._chain.open_session(request)
        if await self._services.live.take(job_id, self, chain_id=self._offer.host.chain_id):
            _log.info("older stream of the session ended", job_id=job_id)
            view = await self._chain.open_session(request)
        self._session = view
        self._services.admission.has_paid(self._stream.remote_peer_id)
        await self._send(session_state=_state(view))

    async def _generate(
        self, command: GenerateCommand, renter: Renter, tasks: asyncio.TaskGroup
    ) -> None:
        session = self._require_session()
        await self._let_answer_end()
        if self._answer is not None:
            raise Busy("this session is answering another request", retry_after_seconds=1)
        offered = [offer.model_id for offer in self._offer.record.models]
        if command.model_id not in offered:
            raise NotFound(f"model {command.model_id} is not served here; {', '.join(offered)} is")
        if command.model_id != session.model_id:
            raise PaymentRequired(f"session {session.job_id} pays for model {session.model_id}")
        prompt = _prompt_record(command)
        authorised = await self._chain.authorise(
            AuthoriseRequest(
                job_id=session.job_id,
                request_id=command.request_id,
                max_tokens=command.max_tokens,
                sealed_prompt=await asyncio.to_thread(seal, prompt, renter.public_key),
            )
        )
        window = self._services.relay.window_tokens
        self._answer = begin_answer(session.job_id, command, authorised, renter.address, window)
        self._asked_seconds = asyncio.get_running_loop().time()
        await self._send(
            started=pb.Started(
                request_id=command.request_id,
                first_token=authorised.first_token,
                next_token=authorised.first_token + len(authorised.delivered_ids),
                max_tokens=authorised.max_tokens,
            )
        )
        self._task = tasks.create_task(self._run_answer(self._answer))

    async def _run_answer(self, answer: Answer) -> None:
        outcome = "error"
        self._services.metrics.open_requests.inc()
        try:
            await self._relay.run(answer)
            outcome = answer.delivery.finish_reason
        except* NodeError as group:
            error = leaves(group)[0]
            if isinstance(error, Unavailable):
                # Ends the stream, not the request: the renter may take it up again.
                raise error from group
            await self._tell(error)
        finally:
            self._services.metrics.open_requests.dec()
            self._services.metrics.requests.labels(outcome).inc()
            self._answer = None
        await self._chain.end_request(
            EndRequest(job_id=answer.job_id, request_id=answer.command.request_id, reason=outcome)
        )
        _log.info("answer ended", job_id=answer.job_id, outcome=outcome, tokens=len(answer.ids))
        if self._is_let_go:
            # What was written is sent first; the renter comes back to the host's next run.
            await self._stream.close()
            self._stream.abandon()

    async def _receipt(self, receipt: pb.Receipt) -> None:
        session = self._require_session()
        if receipt.job_id != session.job_id:
            raise InvalidRequest(f"receipt is for session {receipt.job_id}, not the open one")
        if (len(receipt.running_hash), len(receipt.signature)) != (32, SIGNATURE_BYTES):
            raise InvalidRequest(
                f"receipt needs a hash of 32 bytes and a signature of {SIGNATURE_BYTES}"
            )
        accepted = await self._chain.receipt(
            ReceiptRequest(
                job_id=session.job_id,
                tokens=receipt.tokens,
                running_hash=receipt.running_hash,
                signature=receipt.signature,
            )
        )
        if self._answer is not None:
            self._relay.acknowledge(self._answer, accepted.acknowledged)

    def _cancel(self, request_id: str) -> None:
        if self._answer is not None and self._answer.command.request_id == request_id:
            self._relay.cancel(self._answer)

    async def _close(self, job_id: JobId) -> None:
        session = self._require_session()
        if job_id != session.job_id:
            raise InvalidRequest(f"session {job_id} is not the open one")
        await self._let_answer_end()
        if self._answer is not None:
            raise Busy("an answer is still under way; cancel it first", retry_after_seconds=1)
        await self._send(session_state=_state(await self._chain.close_session(job_id)))

    async def _let_answer_end(self) -> None:
        """An answer whose last receipt is in is only being written down."""
        if self._task is not None and self._answer is not None and self._answer.delivery.is_over:
            await asyncio.wait((self._task,))

    def _require_session(self) -> SessionView:
        if self._session is None:
            raise InvalidRequest("open a session first")
        return self._session

    async def _send(self, **body: object) -> None:
        await self._stream.write_frame(envelope.encode(**body))

    async def _tell(self, error: NodeError) -> None:
        self._services.metrics.refused.labels(error.code).inc()
        _log.info("renter told", code=error.code, error=error.message)
        peer = self._stream.remote_peer_id
        self._services.bans.note(
            peer,
            self._stream.remote_address,
            error,
            has_paid=self._services.admission.is_paying(peer),
        )
        await self._stream.write_frame(envelope.encode_error(error))

    async def _refuse(self, error: NodeError) -> None:
        """Last words; the stream may be gone already."""
        try:
            if not self._stream.is_over:
                await self._tell(error)
                await self._stream.close()
        except Unavailable:
            _log.info("renter gone", error=error.message)
        finally:
            await self._stream.reset()

    def _note_first_token(self) -> None:
        waited = asyncio.get_running_loop().time() - self._asked_seconds
        self._services.metrics.first_token.observe(waited)


def _prompt_record(command: GenerateCommand) -> bytes:
    """What the transcript keeps of a question: its turns, and the ids another host gave."""
    turns: list[tuple[str, str]] = []
    for turn in command.messages:
        turns.append((turn.role, turn.content))
        if turn.tool_calls:
            turns.append(("tool_calls", msgspec.json.encode(turn.tool_calls).decode()))
    if command.continue_ids:
        turns.append(("continue_ids", " ".join(map(str, command.continue_ids))))
    if command.prompt_text:
        turns.append(("prompt_text", command.prompt_text))
    if command.tools or command.json_schema:
        rules = (command.tools, command.tool_choice, command.tool_name, command.json_schema)
        turns.append(("rules", msgspec.json.encode(rules).decode()))
    return msgspec.json.encode(turns)


def _state(view: SessionView) -> pb.SessionState:
    return pb.SessionState(
        job_id=view.job_id,
        phase=view.phase,
        affordable=view.affordable,
        acknowledged=view.acknowledged,
        running_hash=view.running_hash,
        claimed=view.claimed,
        open_request=view.open_request,
    )
