"""The chain process: its routes, and the loop that follows the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from nodeapp.chain import statement
from nodeapp.chain.checkpoints import Archived, job_of
from nodeapp.chain.connection import Connection, first_contact
from nodeapp.chain.desk import Desk, session_view
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.listing import read_listing
from nodeapp.chain.parts import Builder, Parts
from nodeapp.chain.registration import routes
from nodeapp.core.errors import Corrupt, NodeError, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.session import Session
from nodeapp.core.units import BaseUnits
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.provider import Block
from nodeapp.service.lifecycle import Shell
from nodeapp.service.logs import get_logger
from nodeapp.service.server import endpoint, query
from nodeapp.service.settings import ChainSettings
from nodeapp.wire import ipc_chain as wire
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_listing import ListingVersion, ListingVersionRequest
from nodeapp.wire.signed import capability_message, domain_separator

_log = get_logger(__name__)


class ChainNode:
    """Process of lifecycle.run_service."""

    def __init__(self, shell: Shell, settings: ChainSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._resources = AsyncExitStack()
        self._parts: Parts | None = None
        self._trouble = "starting"

    def routes(self) -> Sequence[web.RouteDef]:
        """Questions of p2p, verbs of the operator."""
        return [
            web.get("/v1/host", query(self.host_view)),
            web.get("/v1/sessions", query(self.session_list)),
            web.post(
                "/v1/session/open",
                endpoint(wire.OpenSessionRequest, lambda ask: self.desk().open_session(ask)),
            ),
            web.post(
                "/v1/session/view", endpoint(wire.JobRequest, lambda ask: self.desk().view(ask))
            ),
            web.post(
                "/v1/session/close",
                endpoint(wire.JobRequest, lambda ask: self.desk().close_session(ask)),
            ),
            web.post("/v1/session/detail", endpoint(wire.JobRequest, self.detail)),
            web.post(
                "/v1/request/authorise",
                endpoint(wire.AuthoriseRequest, lambda ask: self.desk().authorise(ask)),
            ),
            web.post(
                "/v1/request/produced-together",
                endpoint(wire.ProducedBatch, lambda ask: self.desk().produced_together(ask)),
            ),
            web.post(
                "/v1/request/produced",
                endpoint(wire.ProducedRequest, lambda ask: self.desk().produced(ask)),
            ),
            web.post(
                "/v1/request/end",
                endpoint(wire.EndRequest, lambda ask: self.desk().end_request(ask)),
            ),
            web.post(
                "/v1/receipt", endpoint(wire.ReceiptRequest, lambda ask: self.desk().receipt(ask))
            ),
            web.post(
                "/v1/receipts", endpoint(wire.ReceiptBatch, lambda ask: self.desk().receipts(ask))
            ),
            web.post("/v1/sign/record", endpoint(wire.SignRecordRequest, self.sign_record)),
            web.post("/v1/backup", endpoint(wire.BackupRequest, self.backup)),
            web.post("/v1/hold", endpoint(wire.HoldRequest, self.hold)),
            web.post(
                "/v1/listing/version",
                endpoint(ListingVersionRequest, self.listing_version),
            ),
            *routes(lambda: self.parts().registrar),
            *statement.routes(self.books),
        ]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open wallet and journal, find the contracts, then follow the chain."""
        builder = Builder(self._shell, self._settings, self._resources)
        self._parts = await builder.build(self._first_contact)
        tasks.create_task(self._parts.connection.listen())
        tasks.create_task(self._follow(self._parts, tasks))
        tasks.create_task(self._on_changes(self._parts, tasks))
        tasks.create_task(self._parts.ledger.keep_short())

    def readiness(self) -> str:
        """Where we are on the chain."""
        if self._parts is None:
            return self._trouble
        now = self._parts.watcher.now
        sessions = len(self._parts.ledger.sessions)
        at = f"block {now.number}" if now else "no block yet"
        reached, listed = self._parts.connection.summary(), self._parts.listing.summary()
        gas = self._parts.sending.gas.summary()
        trouble = "" if self._trouble in reached else self._trouble
        notes = [note for note in (trouble, reached, *_warnings(self._parts), gas, listed) if note]
        return "; ".join([f"{self._parts.wallet.address} at {at}, {sessions} sessions", *notes])

    async def drain(self) -> None:
        """Nothing: every step is journalled and goes on after a restart."""

    async def stop(self) -> None:
        """Close journal and clients."""
        await self._resources.aclose()

    async def _first_contact(self, connection: Connection, contracts: Contracts) -> int:
        return await first_contact(connection, contracts, self._tell)

    def _tell(self, trouble: str) -> None:
        self._trouble = trouble

    async def _follow(self, parts: Parts, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                await parts.connection.survey()
                if await parts.watcher.step():
                    self._trouble = ""
                await parts.desk.close_idle(self._settings.idle_settle_seconds)
                if parts.watcher.now is not None:
                    await parts.desk.close_running_out(parts.watcher.now.timestamp)
                    await parts.listing.step(parts.watcher.now.number)
                # For what nobody waits: a reorg took it back, or a restart forgot who asked.
                await parts.sending.queue.step()
                await parts.sending.gas.step()
            except Corrupt:
                raise
            except NodeError as error:
                # Also Rejected: a public endpoint that lags or limits says so in many ways.
                self._trouble = error.message
                _log.warning("chain cannot be followed", code=error.code, error=error.message)
            # Without a new block, too: a step that failed is tried again.
            self._consider(parts, tasks)
            await parts.connection.wait()

    async def _on_changes(self, parts: Parts, tasks: asyncio.TaskGroup) -> None:
        while True:
            await parts.ledger.wait_for_change()
            self._consider(parts, tasks)

    def _consider(self, parts: Parts, tasks: asyncio.TaskGroup) -> None:
        if parts.watcher.now is not None:
            parts.ledger.time = parts.watcher.now.timestamp
            parts.runner.consider(parts.watcher.now.timestamp, tasks)
            parts.sending.withdrawer.consider(parts.watcher.now, tasks)

    async def host_view(self) -> wire.HostView:
        """Who we are, what is registered, at which price."""
        parts = self.parts()
        deployment, address = parts.contracts.deployment, parts.wallet.address
        now = await self._newest(parts)
        # What was read last serves while the chain cannot be reached.
        listing = parts.listing.listing or await read_listing(parts.contracts, address)
        usdc = deployment.usdc
        models = listing.model_ids if listing.is_active else ()
        return wire.HostView(
            address=address,
            public_key=parts.wallet.public_key,
            chain_id=deployment.chain_id,
            marketplace=deployment.marketplace,
            block_number=now.number,
            block_time=now.timestamp,
            is_registered=listing.is_active,
            model_ids=models,
            usdc=usdc,
            prices=tuple(listing.price(model, usdc) for model in models),
            proof=self._settings.proof,
            held=parts.ledger.held,
        )

    async def listing_version(self, request: ListingVersionRequest) -> ListingVersion:
        """Answer once the listing is another than the asker knows."""
        listing = self.parts().listing
        return ListingVersion(await listing.wait(request.version, request.wait_seconds))

    async def _newest(self, parts: Parts) -> Block:
        return parts.watcher.now or await parts.contracts.provider.block()

    async def sign_record(self, request: wire.SignRecordRequest) -> wire.Signature:
        """Sign a capability record with the wallet."""
        parts = self.parts()
        deployment = parts.contracts.deployment
        separator = domain_separator(deployment.chain_id, deployment.marketplace)
        message = capability_message(separator, request.record)
        return wire.Signature(await parts.wallet.sign_hashed(message))

    async def session_list(self) -> wire.SessionList:
        """Every session that is not archived."""
        return wire.SessionList(tuple(map(session_view, self.parts().ledger.sessions.values())))

    async def detail(self, request: wire.JobRequest) -> wire.SessionDetail:
        """One session with its claims and transactions, archived or not."""
        ledger, job_id = self.parts().ledger, request.job_id
        live = ledger.sessions.get(job_id)
        if live is not None:
            own = [
                one
                for key, one in ledger.mined.items()
                if job_of(key) == job_id or one.tx_hash == live.withdrawn_tx
            ]
            found = Archived(live, tuple(own))
        else:
            older = await ledger.archived(job_id)
            found = older[-1] if older else Archived(ledger.session(job_id))
        session = found.session
        transactions = tuple(
            wire.TransactionView(one.key, one.tx_hash, one.gas_used, one.block_number)
            for one in found.transactions
        )
        return wire.SessionDetail(
            session_view(session), _claims(session), transactions, session.withdrawn or BaseUnits(0)
        )

    def books(self) -> tuple[Ledger, Contracts, Address]:
        """What a statement is made of."""
        parts = self.parts()
        return parts.ledger, parts.contracts, parts.wallet.address

    async def backup(self, request: wire.BackupRequest) -> wire.BackupReply:
        """Copy the journal."""
        copy = await self.parts().ledger.backup(Path(request.directory))
        return wire.BackupReply(str(copy.path), copy.sha256, copy.records)

    async def hold(self, request: wire.HoldRequest) -> Empty:
        """Serve nobody and sign nothing new until it is called without a reason."""
        ledger = self.parts().ledger
        if ledger.held != request.reason:
            _log.warning("held", reason=request.reason or "no more")
        ledger.held = request.reason
        return Empty()

    def desk(self) -> Desk:
        """Where money questions are answered."""
        return self.parts().desk

    def parts(self) -> Parts:
        """The running parts.

        Raises:
            Unavailable: still starting.
        """
        if self._parts is None:
            raise Unavailable("chain is starting")
        return self._parts


def _warnings(parts: Parts) -> list[str]:
    """What the chain did to our sessions, for the readiness line."""
    notes = []
    if parts.ledger.held:
        notes.append("HELD, no requests and no new transactions: see the updater's line")
    if parts.watcher.is_paused:
        notes.append("the marketplace is paused, no new requests")
    vanished = sum(one.opened_in is None for one in parts.ledger.unsettled.values())
    if vanished:
        notes.append(f"{vanished} sessions vanished in a reorg")
    return notes


def _claims(session: Session) -> tuple[wire.ClaimView, ...]:
    mined = session.mined_claims
    return tuple(
        wire.ClaimView(
            claim.interval,
            claim.tokens,
            claim.proof_hash,
            claim.proof_cid,
            claim.transcript_cid,
            claim.proofs,
            claim.proof_bytes,
            claim.prove_cpu_seconds,
            mined=claim in mined,
        )
        for claim in session.claims
    )
