"""Random kill points between sign, journal, send and receipt: nothing lost, nothing claimed twice.

A host serves sessions on a real chain (anvil with the marketplace) with the real ledger on disk,
queue, runner, watcher, sealer and withdrawer; a renter outside opens sessions and keeps what it
signed. A fuse counts the places where money can go wrong and cuts the process there: in most lives
by an exception that no code of ours catches, after which nothing of that life has an effect any
more, in some by a real SIGKILL of a process of its own. Between lives the pool may forget what it
was given. After every cut the journal is opened again and judged against chain and renter.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodeapp.chain import runner as runner_module
from nodeapp.chain import withdrawals as withdrawals_module
from nodeapp.core.ids import JobId
from nodeapp.core.units import BaseUnits, Tokens
from nodeapp.devnet.anvil import find_anvil
from nodeapp.devnet.deploy import DevnetModel, Rules
from nodeapp.devnet.main import Devnet, DevnetOptions, running_devnet
from nodeapp.devnet.provision import HostOffer, ensure_keys, provision_host, provision_renter
from nodeapp.evm.accounts import Wallet, new_wallet
from nodeapp.evm.calls import UNLIMITED, Calls, SessionTerms, approve
from nodeapp.evm.contracts import Contracts, SessionStatus
from nodeapp.evm.events import ProofSubmitted, SessionCreated
from nodeapp.evm.marketplace_events import MarketplaceEvents
from nodeapp.evm.transactions import Transactions
from nodeapp.service.paths import default_cache_dir
from tests.benchmarks.chain_life import (
    CHAIN_ID,
    DISPUTE_SECONDS,
    PAYOUT,
    CutProvider,
    CutWallet,
    Fuse,
    Killed,
    Life,
    Place,
)
from tests.benchmarks.report import Row, row, table

MODEL = DevnetModel("owner/model-GGUF", "model.gguf", "ab" * 32)
DEPOSIT = 2_000_000
PRICE_UNITS = 1000
SESSIONS_AT_ONCE = 3
LONGEST_FUSE = 45
LEAST_CLAIM = 100


@dataclass
class Campaign:
    """The world outside the host's process, and what is judged."""

    devnet: Devnet
    place: Place
    provider: CutProvider
    wallet: CutWallet
    renter: Wallet
    rng: random.Random
    jobs: list[JobId] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)
    replays: int = 0

    async def run(self, kills: int, signals: int) -> None:
        done = 0
        by_signal = set(self.rng.sample(range(kills), signals))
        while done < kills:
            await self._open_sessions()
            is_forked = done in by_signal
            fuse = Fuse(self.rng.randint(1, LONGEST_FUSE), by_signal=is_forked)
            place = await (self._forked(fuse) if is_forked else self._life(fuse))
            if place:
                done += 1
                self.places[place] += 1
                await self._judge_replay()
            await self._between_lives()
        await self._life(Fuse(-1))
        await self._judge_end()

    async def _life(self, fuse: Fuse) -> str:
        """Where it was killed, "" when it came to its end."""
        life = Life(self.place, self.provider, self.wallet, fuse, self.rng)
        async with self._clock():
            await life.run(frozenset(self.jobs))
        return fuse.place

    async def _forked(self, fuse: Fuse) -> str:
        """A life in a process of its own that SIGKILLs itself."""
        async with self._clock():
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.benchmarks.chain_life", "--fuse", str(fuse.left)),
                *("--directory", str(self.place.directory), "--url", self.place.url),
                *("--deployment", str(self.place.deployment_file)),
                *("--renter-key", self.place.renter_key.hex()),
                *("--seed", str(self.rng.getrandbits(32))),
                *("--jobs", ",".join(map(str, self.jobs))),
                cwd=Path(__file__).resolve().parents[2],
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            told = await child.communicate()
        if child.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f"child ended with {child.returncode}: {told[1].decode()[-800:]}")
        return "SIGKILL" if child.returncode else ""

    @asynccontextmanager
    async def _clock(self) -> AsyncIterator[None]:
        """Chain time passes while the host lives: windows end, claims become possible."""

        async def tick() -> None:
            while True:
                await self.devnet.provider.request("evm_increaseTime", [DISPUTE_SECONDS])
                await self.devnet.provider.request("evm_mine", [])
                await asyncio.sleep(0.15)

        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(tick())
            yield
            ticking.cancel()

    async def _between_lives(self) -> None:
        """Sometimes the pool does not mine at once, or forgets."""
        request = self.devnet.provider.request
        await request("evm_setAutomine", [True])
        if self.rng.random() < 0.3:
            await request("evm_setAutomine", [False])
        if self.rng.random() < 0.1:
            await request("anvil_dropAllTransactions", [])

    async def _open_sessions(self) -> None:
        contracts = Contracts(self.devnet.provider, self.devnet.deployment)
        live = 0
        for job_id in self.jobs[-2 * SESSIONS_AT_ONCE :]:
            live += (await contracts.session(job_id)).status is SessionStatus.ACTIVE
        while live < SESSIONS_AT_ONCE:
            await self.devnet.provider.request("evm_setAutomine", [True])
            await self.devnet.provider.request("evm_mine", [])
            deployment = self.devnet.deployment
            price = await contracts.model_price(
                self.wallet.address, MODEL.model_id, deployment.usdc
            )
            receipt = await Transactions(self.devnet.provider, poll_seconds=0.01).send(
                Calls(deployment).create_session(
                    self.wallet.address,
                    MODEL.model_id,
                    deployment.usdc,
                    BaseUnits(DEPOSIT),
                    SessionTerms(price, 86_400, Tokens(100), 3600),
                ),
                self.renter,
            )
            created = [
                e for e in receipt.events(deployment.marketplace) if isinstance(e, SessionCreated)
            ]
            self.jobs.append(created[0].job_id)
            live += 1

    async def _judge_replay(self) -> None:
        """The journal replays, holds no nonce twice, and nothing is claimed that is not signed."""
        ledger = await self.place.open_ledger(self.wallet.address)
        try:
            self.replays += 1
            outbox, signed = ledger.outbox, self.place.book.signed()
            nonces = [errand.nonce for errand in (*outbox.pending.values(), *outbox.recent)]
            self._expect(len(nonces) == len(set(nonces)), "a nonce serves two purposes")
            contracts = Contracts(self.devnet.provider, self.devnet.deployment)
            for session in ledger.unsettled.values():
                job_id = session.terms.job_id
                claimed = (await contracts.session(job_id)).tokens_used
                most = signed.get(job_id, 0)
                self._expect(
                    session.acknowledged <= most, f"session {job_id}: unsigned acknowledgement"
                )
                self._expect(claimed <= most, f"session {job_id}: {claimed} claimed, {most} signed")
        finally:
            await ledger.close()

    async def _judge_end(self) -> None:
        deployment = self.devnet.deployment
        contracts = Contracts(self.devnet.provider, deployment)
        head = await self.devnet.provider.block_number()
        events = MarketplaceEvents(self.devnet.provider, deployment)
        proofs: dict[JobId, list[ProofSubmitted]] = {}
        for event in await events.get_events(deployment.first_block, head, self.wallet.address):
            if isinstance(event, ProofSubmitted):
                proofs.setdefault(event.job_id, []).append(event)
        signed, earned, treasury = self.place.book.signed(), 0, 0
        ledger = await self.place.open_ledger(self.wallet.address)
        for job_id in self.jobs:
            job, session = await contracts.session(job_id), ledger.sessions.get(job_id)
            if session is None:
                (archived,) = await ledger.archived(job_id)
                session = archived.session
            claimed, most = job.tokens_used, signed.get(job_id, 0)
            price = job.price_per_token
            fee = claimed * price // PRICE_UNITS * 1000 // 10_000
            earned, treasury = earned + job.host_share, treasury + fee
            took = [event.proof_hash for event in proofs.get(job_id, [])]
            for holds, fault in (
                (job.status is SessionStatus.COMPLETED, f"ended as {job.status}"),
                (session.is_settled, "not settled in the ledger"),
                (claimed <= most, f"overclaim: {claimed} of {most}"),
                (most - claimed < LEAST_CLAIM, f"lost claim: {claimed} of {most}"),
                (sum(e.tokens for e in proofs.get(job_id, [])) == claimed, "sum of claims"),
                (len(took) == len(set(took)) == len(session.mined_claims), "double claim"),
                (session.claimed == claimed, f"ledger says {session.claimed}, chain {claimed}"),
                (job.host_share + fee + job.refund == job.deposit, "money made or lost"),
                (session.withdrawn == job.host_share, f"withdrawn {session.withdrawn}"),
            ):
                self._expect(holds, f"session {job_id}: {fault}")
        await ledger.close()
        paid = await contracts.asset_balance(deployment.usdc, PAYOUT)
        self._expect(paid == earned, f"payouts: {paid} paid, {earned} earned")
        kept = await contracts.treasury(deployment.usdc)
        self._expect(kept == treasury, f"treasury holds {kept}, fees are {treasury}")

    def _expect(self, holds: object, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


async def run(kills: int = 1000, signals: int = 30, seed: int = 20_261_123) -> list[Row]:
    """Kill so many times, `signals` of them by SIGKILL, and judge after each."""
    started = time.monotonic()
    asyncio.get_running_loop().set_exception_handler(_all_but_killed)
    runner_module.FIRST_RETRY_SECONDS = withdrawals_module.FIRST_RETRY_SECONDS = 0.02
    runner_module.LONGEST_RETRY_SECONDS = withdrawals_module.LONGEST_RETRY_SECONDS = 0.2
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        campaign = await _campaign(Path(name), kills, signals, seed)
    for fault in campaign.faults:
        print(f"seed {seed}: {fault}")
    words = {
        "lost claims": "lost claim",
        "double claims": "double claim",
        "overclaims": "overclaim",
    }
    found = {
        title: sum(word in fault for fault in campaign.faults) for title, word in words.items()
    }
    places = ", ".join(f"{place} {count}" for place, count in campaign.places.most_common())
    return [
        row("kill points", campaign.places.total(), "kills", f">= {kills}", f"seed {seed}"),
        row("of them by SIGKILL", campaign.places["SIGKILL"], "kills", note=places),
        row("journals replayed and judged", campaign.replays, "times"),
        row("sessions settled and paid out", len(campaign.jobs), "sessions"),
        *(row(title, count, "claims", "== 0") for title, count in found.items()),
        row("broken invariants", len(campaign.faults) - sum(found.values()), "faults", "== 0"),
        row("kill campaign", time.monotonic() - started, "s"),
    ]


def _all_but_killed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A write that was under way when its life ended: nobody is left to hear of it."""
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


async def _campaign(directory: Path, kills: int, signals: int, seed: int) -> Campaign:
    options = DevnetOptions(
        directory=directory / "devnet",
        anvil=find_anvil(default_cache_dir()),
        models=(MODEL,),
        block_time_seconds=0,
        rules=Rules(dispute_window_seconds=DISPUTE_SECONDS),
    )
    async with running_devnet(options) as devnet:
        keys, renter = ensure_keys(directory, "host"), new_wallet()
        offer = HostOffer((MODEL.model_id,), "http://127.0.0.1:1")
        await provision_host(devnet.provider, devnet.deployment, keys.wallet, offer)
        await provision_renter(devnet.provider, devnet.deployment, renter, usdc=BaseUnits(10**12))
        allow = approve(devnet.deployment.usdc, devnet.deployment.marketplace, UNLIMITED)
        await Transactions(devnet.provider).send(allow, renter)
        place = Place(directory, devnet.url, devnet.deployment_file, renter.public_key)
        async with CutProvider([devnet.url], chain_id=CHAIN_ID) as provider:
            campaign = Campaign(
                devnet,
                place,
                provider,
                CutWallet(keys.wallet._account),
                renter,
                random.Random(seed),
            )
            await campaign.run(kills, signals)
            return campaign


def main() -> None:
    """The whole campaign."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--signals", type=int, default=2)
    parser.add_argument("--seed", type=int, default=20_261_123)
    options = parser.parse_args()
    table("kills", asyncio.run(run(options.kills, options.signals, options.seed)))


if __name__ == "__main__":
    main()
