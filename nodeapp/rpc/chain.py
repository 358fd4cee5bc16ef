"""Asking the chain process: the money side of a request, signatures of the wallet, backups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

from nodeapp.core.errors import NodeError
from nodeapp.core.ids import JobId
from nodeapp.rpc.together import Together
from nodeapp.service.client import RpcClient
from nodeapp.wire import ipc_chain as wire
from nodeapp.wire.ipc import Empty, Message, error_from_body

Reply = TypeVar("Reply")

DEADLINE_SECONDS = 10.0
MAX_TOGETHER = 64
RESTART_SECONDS = 30.0
"""Idempotent calls wait this long for a restarting chain process."""


class ChainClient:
    """Use as an async context manager; every call here may safely be repeated."""

    def __init__(self, socket_path: Path) -> None:
        self._rpc = RpcClient(socket_path, "chain")
        self._produced = Together[wire.ProducedRequest, None](
            self._journal, key=lambda request: request.job_id, max_items=MAX_TOGETHER
        )
        self._receipts = Together[wire.ReceiptRequest, wire.ReceiptAccepted](
            self._hand_on, key=lambda request: request.job_id, max_items=MAX_TOGETHER
        )

    async def __aenter__(self) -> Self:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *exit_arguments: object) -> None:
        await self._rpc.__aexit__(*exit_arguments)

    async def host(self) -> wire.HostView:
        """Who we are on chain."""
        return await self._rpc.get("/v1/host", wire.HostView, deadline_seconds=DEADLINE_SECONDS)

    async def open_session(self, request: wire.OpenSessionRequest) -> wire.SessionView:
        """Bind an authenticated renter to its session.

        Raises:
            PaymentRequired: not our session, not its depositor, closed, or not confirmed yet.
        """
        return await self._ask("/v1/session/open", request, wire.SessionView)

    async def session(self, job_id: JobId) -> wire.SessionView:
        """A session as it stands."""
        return await self._ask("/v1/session/view", wire.JobRequest(job_id=job_id), wire.SessionView)

    async def authorise(self, request: wire.AuthoriseRequest) -> wire.Authorised:
        """Reserve deposit for one prompt, or take it up again."""
        return await self._ask("/v1/request/authorise", request, wire.Authorised)

    async def produced(self, request: wire.ProducedRequest) -> None:
        """Journal tokens; call before sending them."""
        await self._produced.add(request)

    async def receipt(self, request: wire.ReceiptRequest) -> wire.ReceiptAccepted:
        """Hand on a renter's receipt."""
        return await self._receipts.add(request)

    async def end_request(self, request: wire.EndRequest) -> None:
        """Release the reservation."""
        await self._ask("/v1/request/end", request, Empty)

    async def close_session(self, job_id: JobId) -> wire.SessionView:
        """The renter is done: claim the rest, complete after the window, withdraw."""
        return await self._ask(
            "/v1/session/close", wire.JobRequest(job_id=job_id), wire.SessionView
        )

    async def sign_record(self, record: bytes) -> bytes:
        """The wallet's signature over a capability record."""
        reply = await self._ask(
            "/v1/sign/record", wire.SignRecordRequest(record=record), wire.Signature
        )
        return reply.signature

    async def sessions(self) -> wire.SessionList:
        """Every session in the journal."""
        return await self._rpc.get(
            "/v1/sessions", wire.SessionList, deadline_seconds=DEADLINE_SECONDS
        )

    async def detail(self, job_id: JobId) -> wire.SessionDetail:
        """A session with its claims, transactions and withdrawal."""
        return await self._ask(
            "/v1/session/detail", wire.JobRequest(job_id=job_id), wire.SessionDetail
        )

    async def backup(self, directory: Path) -> wire.BackupReply:
        """Copy the journal into a directory."""
        return await self._rpc.call(
            "/v1/backup",
            wire.BackupRequest(directory=str(directory)),
            wire.BackupReply,
            deadline_seconds=60.0,
        )

    async def hold(self, reason: str) -> None:
        """Serve nobody and sign nothing new; "": go on. Forgotten when the process ends."""
        await self._rpc.call(
            "/v1/hold", wire.HoldRequest(reason), Empty, deadline_seconds=DEADLINE_SECONDS
        )

    async def _journal(
        self, requests: Sequence[wire.ProducedRequest]
    ) -> Sequence[NodeError | None]:
        if len(requests) == 1:
            await self._ask("/v1/request/produced", requests[0], Empty)
            return (None,)
        batch = wire.ProducedBatch(tuple(requests))
        reply = await self._ask("/v1/request/produced-together", batch, wire.ProducedReply)
        return [None if body is None else error_from_body(body) for body in reply.errors]

    async def _hand_on(
        self, requests: Sequence[wire.ReceiptRequest]
    ) -> Sequence[wire.ReceiptAccepted | NodeError]:
        if len(requests) == 1:
            return (await self._ask("/v1/receipt", requests[0], wire.ReceiptAccepted),)
        batch = wire.ReceiptBatch(tuple(requests))
        reply = await self._ask("/v1/receipts", batch, wire.ReceiptReply)
        return [
            wire.ReceiptAccepted(tokens) if error is None else error_from_body(error)
            for tokens, error in zip(reply.acknowledged, reply.errors, strict=True)
        ]

    async def _ask(self, path: str, message: Message, reply: type[Reply]) -> Reply:
        return await self._rpc.call(
            path, message, reply, deadline_seconds=RESTART_SECONDS, retry=True
        )
