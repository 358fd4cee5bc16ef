"""renter/verify.py against a real chain and a real portal: claims that come without a proof."""

import dataclasses
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from nodeapp.chain.sealing import Sealer
from nodeapp.core.errors import Unavailable
from nodeapp.core.ids import PeerId
from nodeapp.core.session import (
    Claim,
    ContractReceiveSessionOpened,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    Terms,
    TokensProduced,
)
from nodeapp.core.transitions import apply, open_session
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.devnet.anvil import find_anvil
from nodeapp.devnet.main import DevnetOptions, running_devnet
from nodeapp.devnet.provision import HostOffer, provision_host, provision_renter
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import UNLIMITED, Calls, SessionTerms, approve
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.transactions import Transactions
from nodeapp.renter.record import SessionHead, SessionRecord
from nodeapp.renter.settings import RenterSettings
from nodeapp.renter.verify import Verifier, VerifyReport
from nodeapp.rpc.storage import StorageClient
from nodeapp.s5.blobs import open_blob_store
from nodeapp.s5.client import download_blob
from nodeapp.s5.portal import UPLOAD, public_app, upload
from nodeapp.service.paths import default_cache_dir
from nodeapp.wire.signed import domain_separator, receipt_digest
from tests.contracts.world import MODEL
from tests.fakes.sealing import FakeProver

DEPOSIT = 2_000_000
IDS = tuple(range(1000, 1300))
SALTS = (b"s" * 16, b"t" * 16)
REQUEST = "ab" * 16


@dataclass
class Sold:
    """A session whose 300 tokens were delivered and acknowledged."""

    contracts: Contracts
    transactions: Transactions
    calls: Calls
    host: Wallet
    renter: Wallet
    sealer: Sealer
    record: SessionRecord
    settings: RenterSettings
    terms: Terms

    def session(self, ids=IDS, *, signer=None):
        """The host's side of it, as its ledger would hold it."""
        terms = self.terms
        running = extend_hash(initial_hash(terms.chain_id, terms.marketplace, terms.job_id), ids)
        separator = domain_separator(terms.chain_id, terms.marketplace)
        digest = receipt_digest(separator, terms.job_id, len(ids), running)
        signature = (signer or self.renter).sign_digest(digest)
        session = open_session(ContractReceiveSessionOpened(terms.job_id, terms))
        for change in (
            RenterAuthenticated(terms.job_id, self.renter.public_key),
            RequestAuthorised(terms.job_id, REQUEST, 500, b"sealed prompt"),
            TokensProduced(terms.job_id, REQUEST, ids),
            RenterSentReceipt(terms.job_id, len(ids), running, signature),
        ):
            session = apply(session, change)
        return session

    async def claim(self, session, sealer=None):
        tokens = len(IDS)
        claim = Claim(0, 0, tokens, SALTS, bytes(32))
        sealed = await (sealer or self.sealer).seal(session, claim)
        call = self.calls.submit_proof(
            self.terms.job_id,
            tokens,
            sealed.proof_hash,
            proof_cid=sealed.proof_cid,
            delta_cid=sealed.transcript_cid,
        )
        await self.contracts.provider.request("evm_increaseTime", [10])
        await self.transactions.send(call, self.host)
        return sealed

    async def verify(self, **changes) -> VerifyReport:
        settings = msgspec.structs.replace(self.settings, **changes)
        url = self.record.head.portal_url

        async def fetch(cid, max_bytes):
            return await download_blob(url, cid, max_bytes=max_bytes)

        return await Verifier(settings, self.renter, self.contracts, self.record, fetch).verify()


@asynccontextmanager
async def portal(directory: Path):
    store = open_blob_store(directory / "s5", max_blob_bytes=1 << 20, quota_bytes=10 << 20)
    private = web.Application()
    private.router.add_post(UPLOAD, partial(upload, store=store))
    runners = [
        web.AppRunner(app, shutdown_timeout=1.0) for app in (public_app(store, "0"), private)
    ]
    for runner in runners:
        await runner.setup()
    try:
        await web.TCPSite(runners[0], "127.0.0.1", 0).start()
        await web.UnixSite(runners[1], str(directory / "s5.sock")).start()
        yield f"http://127.0.0.1:{runners[0].addresses[0][1]}", directory / "s5.sock"
    finally:
        for runner in runners:
            await runner.cleanup()


@pytest.fixture
async def sold(tmp_path):
    try:
        anvil = find_anvil(default_cache_dir())
    except Unavailable as error:
        pytest.skip(error.message)
    options = DevnetOptions(tmp_path / "chain", anvil, (MODEL,), block_time_seconds=0)
    host, renter = new_wallet(), new_wallet()
    async with running_devnet(options) as devnet, portal(tmp_path) as (url, socket):
        provider, deployment = devnet.provider, devnet.deployment
        await provision_host(provider, deployment, host, HostOffer((MODEL.model_id,), url))
        await provision_renter(provider, deployment, renter)
        calls, transactions = Calls(deployment), Transactions(provider, poll_seconds=0.02)
        await transactions.send(approve(deployment.usdc, deployment.marketplace, UNLIMITED), renter)
        terms = SessionTerms(2000, 3600, 100, 300)
        opened = calls.create_session(host.address, MODEL.model_id, deployment.usdc, DEPOSIT, terms)
        receipt = await transactions.send(opened, renter)
        (created,) = receipt.events(deployment.marketplace)
        contracts = Contracts(provider, deployment)
        job = await contracts.session(created.job_id)
        head = SessionHead(
            chain_id=deployment.chain_id,
            marketplace=deployment.marketplace,
            job_id=job.job_id,
            host=host.address,
            peer_id=PeerId("peer"),
            model_id=MODEL.model_id,
            portal_url=url,
            addresses=(),
        )
        record = SessionRecord.create(tmp_path / "state", head)
        record.receive(0, IDS)
        settings = RenterSettings(
            str(tmp_path), "", "", "", (devnet.url,), deployment.chain_id, (), MODEL.model_id
        )
        sealer = Sealer(FakeProver(), StorageClient(socket), host, contracts, policy="off")
        yield Sold(
            contracts,
            transactions,
            calls,
            host,
            renter,
            sealer,
            record,
            settings,
            Terms(
                chain_id=deployment.chain_id,
                marketplace=deployment.marketplace,
                job_id=job.job_id,
                renter=renter.address,
                host=host.address,
                model_id=MODEL.model_id,
                asset=deployment.usdc,
                deposit=job.deposit,
                price_per_token=job.price_per_token,
                proof_interval=job.proof_interval,
                proof_timeout_seconds=job.proof_timeout_seconds,
                max_duration_seconds=job.max_duration_seconds,
                started_at=job.start_time,
            ),
        )


async def test_a_claim_without_a_proof_is_verified_by_the_receipt_and_told_apart(sold):
    await sold.claim(sold.session())
    report = await sold.verify()
    assert report.ok, report.reason
    assert (report.claims, report.unproven, report.tokens_claimed) == (1, 1, 300)
    checks = {check.name: check.detail for check in report.checks}
    assert checks["NO PROOF"] == "receipt only, the host says: off"
    assert checks["receipt"] == "own signature for 300 tokens"
    assert "ezkl proof" not in checks


async def test_a_renter_that_requires_proofs_calls_it_a_fault(sold):
    await sold.claim(sold.session())
    report = await sold.verify(require_proofs=True)
    assert not report.ok
    assert "the claim of 300 tokens has no proof (off), and require_proofs is set" in report.reason


async def test_other_tokens_than_received_are_found_without_a_proof(sold):
    other = (*IDS[:-1], 7)
    await sold.claim(sold.session(other))
    report = await sold.verify()
    assert report.reason == "transcript holds other tokens than were received"


async def test_a_receipt_that_the_renter_never_gave_is_found(sold):
    await sold.claim(sold.session(signer=sold.host))
    report = await sold.verify()
    assert not report.ok
    assert "signature" in report.reason


async def test_a_claim_of_more_than_was_received_is_found_without_a_proof(sold):
    sold.record.token_ids[:] = IDS[:250]
    await sold.claim(sold.session())
    report = await sold.verify()
    assert "only 250 were received" in report.reason


async def test_a_prover_that_is_down_does_not_hold_the_money_up(sold):
    prover = FakeProver(is_down=True)
    sealer = dataclasses.replace(
        sold.sealer, prover=prover, policy="best_effort", patience_seconds=0.0
    )
    await sold.claim(sold.session(), sealer=sealer)
    report = await sold.verify()
    assert report.ok, report.reason
    checks = {check.name: check.detail for check in report.checks}
    assert checks["NO PROOF"] == "receipt only, the host says: prover_unavailable"
