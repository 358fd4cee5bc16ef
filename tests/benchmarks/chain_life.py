"""One life of a host's process on a real chain, which a fuse cuts at the places where money can go wrong.

Cut by an exception that no code of ours catches, after which nothing of that life has an effect any
more, or, run as a program of its own, by a real SIGKILL.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodeapp.chain.ledger import Ledger
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.chain.runner import Runner, RunnerSettings
from nodeapp.chain.sealing import Sealer
from nodeapp.chain.watcher import Watcher
from nodeapp.chain.withdrawals import Withdrawer
from nodeapp.core.errors import NodeError
from nodeapp.core.fees import GWEI, FeePolicy
from nodeapp.core.ids import Address, Cid, JobId, RequestId
from nodeapp.core.session import (
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    Session,
    SessionClosing,
    TokensProduced,
)
from nodeapp.core.units import Tokens, Wei
from nodeapp.core.usage import extend_hash
from nodeapp.core.withdrawals import WithdrawalPolicy
from nodeapp.evm.accounts import Wallet, load_keystore
from nodeapp.evm.calls import Calls
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.provider import Provider
from nodeapp.evm.transactions import Transactions
from nodeapp.service.metrics import Metrics
from nodeapp.store.journal import Change, Journal
from tests.fakes.sealing import FakeProver

CHAIN_ID = 31337
DISPUTE_SECONDS = 30
LIFE_SECONDS = 60.0
RPC_PLACES = ("eth_sendRawTransaction", "eth_getTransactionReceipt", "eth_getTransactionCount")
PAYOUT = Address("0x00000000000000000000000000000000000B0B0b")


class Killed(BaseException):
    """The process ends here; no code of ours catches it."""


@dataclass
class Fuse:
    """Burns down at every place that counts; once blown, nothing has an effect any more."""

    left: int
    by_signal: bool = False
    place: str = ""

    def at(self, place: str) -> None:
        if self.place:
            raise Killed(self.place)
        self.left -= 1
        if self.left == 0:
            self.place = place
            if self.by_signal:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed(place)


class CutProvider(Provider):
    """The chain's endpoint; money requests burn the fuse before and after."""

    fuse = Fuse(0)

    async def _first(self, method: str, *rest: Any, **more: Any) -> Any:
        if method not in RPC_PLACES:
            if self.fuse.place:
                raise Killed(self.fuse.place)
            return await super()._first(method, *rest, **more)
        self.fuse.at(f"before {method}")
        answer = await super()._first(method, *rest, **more)
        self.fuse.at(f"after {method}")
        return answer


class CutWallet(Wallet):
    """Signing burns the fuse before and after."""

    fuse = Fuse(0)

    async def sign_transaction(self, fields: Any) -> Any:
        self.fuse.at("before signing")
        signed = await super().sign_transaction(fields)
        self.fuse.at("after signing")
        return signed


class CutBook:
    """The ledger's journal; a write burns the fuse before and after."""

    def __init__(self, book: Journal, fuse: Fuse) -> None:
        self._inner, self._fuse = book, fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, changes: list[Change]) -> int:
        self._fuse.at("before journal")
        place = await self._inner.append(changes)
        self._fuse.at("after journal")
        return place


@dataclass
class CutStorage:
    """Where envelopes and transcripts go."""

    fuse: Fuse

    async def store(self, data: bytes) -> Cid:
        self.fuse.at("before storing")
        return Cid(f"b{len(data)}")


class RenterBook:
    """What the renter signed, session by session: on its own disk, so kills do not touch it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def sign(self, job_id: JobId, tokens: int) -> None:
        with self._path.open("a") as file:
            file.write(f"{job_id} {tokens}\n")

    def signed(self) -> dict[JobId, int]:
        most: dict[JobId, int] = {}
        for line in self._path.read_text().splitlines():
            job_id, tokens = (int(word) for word in line.split())
            most[JobId(job_id)] = max(tokens, most.get(JobId(job_id), 0))
        return most


@dataclass
class Place:
    """Files and addresses that outlive the host's processes."""

    directory: Path
    url: str
    deployment_file: Path
    renter_key: bytes

    @property
    def book(self) -> RenterBook:
        return RenterBook(self.directory / "renter.txt")

    async def open_ledger(self, owner: Address) -> Ledger:
        path = self.directory / "journal.db"
        return await Ledger.open(path, owner=owner, marker=self.directory / "marker")


@dataclass
class Life:
    """One run of the host's process, from opening the journal to its end."""

    place: Place
    provider: CutProvider
    wallet: CutWallet
    fuse: Fuse
    rng: random.Random
    ledger: Ledger = field(init=False)

    async def run(self, until_settled: frozenset[JobId]) -> bool:
        """Serve until the sessions are settled and paid out (True), or killed (False)."""
        self.provider.fuse = self.wallet.fuse = self.fuse
        self.ledger = await self.place.open_ledger(self.wallet.address)
        self.ledger._book = CutBook(self.ledger._book, self.fuse)
        try:
            async with asyncio.timeout(LIFE_SECONDS), asyncio.TaskGroup() as tasks:
                await self._serve(tasks, until_settled)
        except BaseExceptionGroup as group:
            if group.split(Killed)[1] is not None:
                raise
        except Killed:
            pass
        except TimeoutError as error:
            raise AssertionError(self._stuck()) from error
        finally:
            await self.ledger.close()
        return not self.fuse.place

    def _stuck(self) -> str:
        sessions = [
            (one.terms.job_id, one.phase.value, one.covered, one.claimed, one.acknowledged)
            for one in self.ledger.unsettled.values()
        ]
        return f"stuck: sessions {sessions}, outbox {self.ledger.outbox.pending}"

    async def _serve(self, tasks: asyncio.TaskGroup, until_settled: frozenset[JobId]) -> None:
        deployment = load_deployment(self.place.deployment_file)
        contracts, host = Contracts(self.provider, deployment), self.wallet.address
        watcher = Watcher(self.ledger, contracts, host, confirmations=1)
        queue = TransactionQueue(
            self.ledger,
            Transactions(self.provider, poll_seconds=0.01),
            self.wallet,
            confirmations=1,
            metrics=Metrics("chain"),
            settings=QueueSettings(
                fees=FeePolicy(Wei(500 * GWEI), Wei(50 * GWEI)),
                replace_after_blocks=6,
                poll_seconds=0.01,
            ),
        )
        sealer = Sealer(FakeProver(), CutStorage(self.fuse), self.wallet, contracts, policy="off")
        calls = Calls(deployment)
        settings = RunnerSettings(300, DISPUTE_SECONDS)
        runner = Runner(self.ledger, queue, sealer, calls, settings)
        withdrawer = Withdrawer(
            self.ledger, queue, contracts, calls, host, PAYOUT, WithdrawalPolicy(0, 0, 0, 5.0, 0)
        )
        while not self._is_done(until_settled):
            try:
                await watcher.step()
                await queue.step()
                await self._desk()
            except NodeError as error:
                print(f"  {type(error).__name__}: {error}", file=sys.stderr)
            if watcher.now is not None:
                runner.consider(watcher.now.timestamp, tasks)
                withdrawer.consider(watcher.now, tasks)
            await asyncio.sleep(0.01)
        for task in (*runner._jobs.values(), *withdrawer._work.values()):
            if task.task is not None:
                task.task.cancel()

    def _is_done(self, until_settled: frozenset[JobId]) -> bool:
        known = self.ledger.sessions
        is_settled = all(job in known and known[job].is_settled for job in until_settled)
        is_quiet = not self.ledger.outbox.pending and not self.ledger.withdrawals.open
        return bool(until_settled) and is_settled and is_quiet

    async def _desk(self) -> None:
        """The renter's side of every session moves on by one message."""
        for session in list(self.ledger.unsettled.values()):
            if session.ended is None and not session.closing:
                await self._converse(session)

    async def _converse(self, session: Session) -> None:
        job_id, wanted = session.terms.job_id, 150 + 97 * (session.terms.job_id % 6)
        request = session.request
        if not session.renter_key:
            await self.ledger.record(RenterAuthenticated(job_id, self.place.renter_key))
        elif session.acknowledged >= wanted and request is None:
            await self.ledger.record(SessionClosing(job_id, "renter"))
        elif request is None:
            number = RequestId(f"{self.rng.getrandbits(128):032x}")
            await self.ledger.record(RequestAuthorised(job_id, number, Tokens(1000), b"sealed"))
        elif session.acknowledged < session.produced:
            start = session.acknowledged
            newly = session.ids(start, session.produced - start)
            running = extend_hash(session.running_hash, newly)
            self.place.book.sign(job_id, session.produced)
            await self.ledger.record(
                RenterSentReceipt(job_id, session.produced, running, b"r" * 65)
            )
        elif session.produced < wanted:
            ids = tuple(self.rng.randrange(32_000) for _ in range(60))
            await self.ledger.record(TokensProduced(job_id, request.request_id, ids))
        else:
            await self.ledger.record(RequestEnded(job_id, request.request_id, "stop"))


async def _live(options: argparse.Namespace) -> None:
    directory = Path(options.directory)
    wallet = load_keystore(directory / "host.json", directory / "host.password")
    place = Place(
        directory, options.url, Path(options.deployment), bytes.fromhex(options.renter_key)
    )
    jobs = frozenset(JobId(int(word)) for word in options.jobs.split(","))
    async with CutProvider([options.url], chain_id=CHAIN_ID) as provider:
        life = Life(
            place,
            provider,
            CutWallet(wallet._account),
            Fuse(options.fuse, by_signal=True),
            random.Random(options.seed),
        )
        await life.run(jobs)


def main() -> None:
    """A life that ends by SIGKILL, or by itself when the fuse is long enough."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fuse", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    for name in ("directory", "url", "deployment", "renter-key", "jobs"):
        parser.add_argument(f"--{name}", required=True)
    asyncio.run(_live(parser.parse_args()))


if __name__ == "__main__":
    main()
