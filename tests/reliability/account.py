"""A host's account on a fake chain: its ledger and its queue, which die and come again."""

import asyncio

from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.core.fees import FeePolicy
from nodeapp.core.units import Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import new_wallet
from nodeapp.service.metrics import Metrics
from tests.fakes.mempool import FakeChain
from tests.fakes.paid_session import open_ledger

KEY = "claim/7/0"
FEES = FeePolicy(Wei(1000), Wei(100))
QUICK = QueueSettings(fees=FEES, replace_after_blocks=4, poll_seconds=0.005, mined_seconds=5)


def call(name="claim"):
    return Call(None, name, name.encode())


class Account:
    """Ledger and queue over one fake chain, which outlives them."""

    def __init__(self, directory, **chain):
        self.directory, self.chain, self.wallet = directory, FakeChain(**chain), new_wallet()
        self.confirmations, self.settings = 1, QUICK

    async def start(self):
        self.ledger = await open_ledger(self.directory)
        self.queue = TransactionQueue(
            self.ledger,
            self.chain,
            self.wallet,
            confirmations=self.confirmations,
            metrics=Metrics("chain"),
            settings=self.settings,
        )

    async def restart(self):
        await self.ledger.close()
        await self.start()

    def execute(self, key=KEY, name="claim", **more):
        return self.queue.execute(key, call(name), **more)

    async def until(self, condition, tries=400):
        for _ in range(tries):
            if condition():
                return
            await self.queue.step()
            await asyncio.sleep(0.002)
        raise AssertionError(f"not reached; {self.ledger.outbox}")

    @property
    def pending(self):
        return self.ledger.outbox.pending
