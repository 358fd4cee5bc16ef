"""What lies behind a host costs it nothing, and what is deep enough holds nobody up."""

import asyncio

from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.core.session import (
    ContractReceiveSessionEnded,
    EarningsWithdrawn,
    Phase,
    SessionClosing,
)
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import new_wallet
from nodeapp.service.metrics import Metrics
from tests.fakes.mempool import FakeChain
from tests.fakes.paid_session import JOB, open_ledger, opened


async def test_only_sessions_with_something_to_do_are_looked_at(tmp_path):
    ledger = await open_ledger(tmp_path)
    for job_id in (JOB, 8, 9, 10):
        await ledger.record(opened(job_id=job_id))
    await ledger.record(ContractReceiveSessionEnded(8, Phase.TIMED_OUT, 0, 100))
    await ledger.record(ContractReceiveSessionEnded(9, Phase.COMPLETED, 50, 50))
    await ledger.record(ContractReceiveSessionEnded(10, Phase.COMPLETED, 50, 50))
    await ledger.record(EarningsWithdrawn(10, 50), SessionClosing(JOB, "renter"))
    assert sorted(ledger.unsettled) == [JOB, 9]
    assert ledger.unsettled[JOB] == ledger.session(JOB)
    await ledger.close()
    again = await open_ledger(tmp_path)
    assert sorted(again.unsettled) == [JOB, 9]
    assert sorted(again.sessions) == [JOB, 8, 9, 10]
    await again.close()


async def test_transactions_do_not_wait_for_each_others_confirmations(tmp_path):
    chain, ledger = FakeChain(), await open_ledger(tmp_path)
    queue = TransactionQueue(
        ledger,
        chain,
        new_wallet(),
        confirmations=12,
        metrics=Metrics("chain"),
        settings=QueueSettings(poll_seconds=0.01),
    )
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(queue.execute(f"claim/{number}/0", Call(None, f"c{number}", b"")))
        while len(chain.effects) < 5:
            await asyncio.sleep(0.01)
        assert ledger.mined == {}, "a mined transaction counts when it is deep enough"
        chain.mine(11)
    assert len(ledger.mined) == 5
    await ledger.close()
