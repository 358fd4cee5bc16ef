"""What the chain process is made of, put together from its settings once at start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nodeapp.chain.audited import ENVELOPE, AuditedSigner
from nodeapp.chain.connection import Connection
from nodeapp.chain.desk import Desk
from nodeapp.chain.gate import Gate, Sight
from nodeapp.chain.ledger import Ledger
from nodeapp.chain.listing import ListingWatch, settings_wish
from nodeapp.chain.listing_reader import ListingReader
from nodeapp.chain.registration import Registrar
from nodeapp.chain.runner import Runner, RunnerSettings
from nodeapp.chain.sealing import Sealer
from nodeapp.chain.sending import Sending, build_sending
from nodeapp.chain.signing import PolicySigner, host_policy, journal_marker, open_signer
from nodeapp.chain.watcher import Watcher
from nodeapp.core.errors import Corrupt, InvalidRequest, Unavailable
from nodeapp.core.ids import Address
from nodeapp.core.listing import Listing, Wish, findings
from nodeapp.core.units import Tokens
from nodeapp.evm.calls import NATIVE, Calls
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.deployment import Deployment, load_deployment
from nodeapp.evm.signers import Signer
from nodeapp.rpc.prover import ProverClient
from nodeapp.rpc.storage import StorageClient
from nodeapp.service.chains import FIRST, snapshots_of
from nodeapp.service.lifecycle import Shell
from nodeapp.service.settings import ChainSettings
from nodeapp.store.backups import way_back

FirstContact = Callable[[Connection, Contracts], Awaitable[int]]
"""Wait for the chain and check its contracts; the dispute window in seconds."""
WishFor = Callable[[Listing], Wish]
"""What the settings ask of a listing."""


@dataclass(slots=True)
class Parts:
    """What is there once the process has started."""

    wallet: Signer
    ledger: Ledger
    desk: Desk
    connection: Connection
    contracts: Contracts
    watcher: Watcher
    runner: Runner
    sending: Sending
    listing: ListingWatch
    registrar: Registrar


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds the parts; what must be closed is pushed onto `resources`."""

    shell: Shell
    settings: ChainSettings
    resources: AsyncExitStack

    async def build(self, first_contact: FirstContact) -> Parts:
        """Open wallet, journal and endpoints, then put the rest together.

        Raises:
            InvalidRequest: settings that do not fit, or contracts of another chain.
            Corrupt: the journal cannot be trusted.
            Unavailable: another process holds the journal.
        """
        settings, shell = self.settings, self.shell
        deployment = await self.deployment()
        key = await open_signer(settings, self.resources)
        ledger = await self._ledger(key.address)
        policy = host_policy(settings, deployment, key.address)
        allowed = PolicySigner(key, policy, ledger, clock=shell.clock, metrics=shell.metrics)
        wallet = AuditedSigner(allowed, shell.audit)
        connection = await self.resources.enter_async_context(
            Connection(settings, shell.clock, shell.metrics)
        )
        contracts = Contracts(connection.provider, deployment)
        dispute_window = await first_contact(connection, contracts)
        sending = build_sending(
            settings,
            ledger=ledger,
            contracts=contracts,
            signer=wallet,
            clock=shell.clock,
            metrics=shell.metrics,
            audit=shell.audit,
        )
        wish = partial(settings_wish, settings, usdc=deployment.usdc, public_key=wallet.public_key)
        # A misspelt price ends the start, not the first look at the chain.
        wish(Listing())
        watcher = self._watcher(ledger, connection, deployment, wallet.address)
        listing = self._listing(contracts, wallet, wish)
        gate = self._gate(contracts, watcher, connection, listing, wallet.address)
        return Parts(
            wallet=wallet,
            ledger=ledger,
            desk=Desk(ledger, shell.clock, gate),
            connection=connection,
            contracts=contracts,
            watcher=watcher,
            runner=await self._runner(
                ledger, sending, replace(wallet, purpose=ENVELOPE), contracts, dispute_window
            ),
            sending=sending,
            listing=listing,
            registrar=_registrar(ledger, sending, wallet, contracts, wish),
        )

    async def deployment(self) -> Deployment:
        """The contracts' addresses.

        Raises:
            NotFound, InvalidRequest: no such file, not one of ours, or of another chain.
        """
        file, chain_id = self.settings.deployment_file, self.settings.chain_id
        if not file:
            raise InvalidRequest(
                "chain.deployment_file is not set: `fabstir-node config init` writes a settings"
                " file with what to decide, `fabstir-node demo` shows all without one"
            )
        deployment = await asyncio.to_thread(load_deployment, Path(file))
        if deployment.chain_id != chain_id:
            raise InvalidRequest(
                f"{file} is for chain {deployment.chain_id}, chain.chain_id is {chain_id}"
            )
        return deployment

    def marker(self, owner: Address) -> Path:
        """Where it is noted which journal is this account's."""
        process = self.shell.process
        marker = journal_marker(self.settings, self.shell.paths.state, owner)
        # One key may earn on several chains; each has a journal of its own.
        return marker if process == FIRST else marker.with_name(f"{marker.name}.{process}")

    async def _ledger(self, owner: Address) -> Ledger:
        paths, process = self.shell.paths, self.shell.process
        place = paths.journal_of(process)
        try:
            ledger = await Ledger.open(place, owner=owner, marker=self.marker(owner))
        except Corrupt as error:
            # An update that fell back after it had changed the journal.
            copies = snapshots_of(paths.state / "snapshots", process)
            way = await asyncio.to_thread(way_back, place, copies)
            raise Corrupt(f"{error.message}{way}") from error
        self.resources.push_async_callback(ledger.close)
        return ledger

    async def _runner(
        self,
        ledger: Ledger,
        sending: Sending,
        wallet: Signer,
        contracts: Contracts,
        dispute_window: int,
    ) -> Runner:
        settings, paths = self.settings, self.shell.paths
        prover = await self.resources.enter_async_context(ProverClient(paths.socket("prover")))
        sealer = Sealer(
            prover,
            StorageClient(paths.socket("s5")),
            wallet,
            contracts,
            policy=settings.proof,
            patience_seconds=settings.proof_patience_seconds,
            clock=self.shell.clock,
        )
        return Runner(
            ledger=ledger,
            queue=sending.queue,
            sealer=sealer,
            calls=Calls(contracts.deployment),
            settings=RunnerSettings(settings.claim_interval_tokens, dispute_window),
        )

    def _watcher(
        self, ledger: Ledger, connection: Connection, deployment: Deployment, host: Address
    ) -> Watcher:
        return Watcher(
            ledger,
            Contracts(connection.steady, deployment),
            host,
            confirmations=self.settings.confirmations,
            window_blocks=self.settings.reorg_window_blocks,
        )

    def _listing(self, contracts: Contracts, wallet: Signer, wish: WishFor) -> ListingWatch:
        return ListingWatch(
            contracts,
            wallet.address,
            judge=lambda listing, bounds: findings(
                listing, wish(listing), bounds, public_key=wallet.public_key
            ),
            check_seconds=self.settings.listing_check_seconds,
            clock=self.shell.clock,
            metrics=self.shell.metrics,
        )

    def _gate(
        self,
        contracts: Contracts,
        watcher: Watcher,
        connection: Connection,
        listing: ListingWatch,
        host: Address,
    ) -> Gate:
        return Gate(
            host=host,
            assets=frozenset((contracts.deployment.usdc, NATIVE)),
            look=lambda: _sight(watcher, connection, listing),
            price_at=contracts.model_price,
            find=watcher.look_for,
            confirmations=self.settings.confirmations,
            max_proof_interval=Tokens(self.settings.max_proof_interval_tokens),
            confirmations_by_amount=self.settings.confirmations_by_amount,
        )


def _registrar(
    ledger: Ledger, sending: Sending, wallet: AuditedSigner, contracts: Contracts, wish: WishFor
) -> Registrar:
    return Registrar(
        reader=ListingReader(contracts, wallet.address, wallet.public_key, wish),
        calls=Calls(contracts.deployment),
        queue=sending.queue,
        ledger=ledger,
        withdrawer=sending.withdrawer,
        audit=wallet.audit,
    )


def _sight(watcher: Watcher, connection: Connection, listing: ListingWatch) -> Sight:
    """The present, as far as it is known.

    Raises:
        Unavailable: the chain was not read yet.
    """
    if watcher.head is None or watcher.now is None:
        raise Unavailable("the host has not read the chain yet", retry_after_seconds=2.0)
    listed = listing.listing
    return Sight(
        head=watcher.head.number,
        time=watcher.now.timestamp,
        is_paused=watcher.is_paused,
        disagreement=connection.steady.disagreement,
        unapproved=listed.unapproved if listed is not None else (),
    )
