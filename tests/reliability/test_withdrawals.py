"""Earnings leave the contract once, for all sessions together, and arrive once."""

import asyncio
from dataclasses import dataclass

import pytest

from nodeapp.chain.ledger import CursorMoved, RewoundTo
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.chain.withdrawals import GONE_BLOCKS, Withdrawer, payment_of
from nodeapp.core.errors import NodeError, NotFound, Rejected
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.core.withdrawals import (
    MAX_AMOUNT,
    NATIVE,
    WithdrawalPolicy,
)
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.calls import Calls
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.provider import Block
from nodeapp.service.metrics import Metrics
from nodeapp.store.backups import restore_backup
from tests.fakes.mempool import Died, FakeChain
from tests.fakes.paid_session import ASSET, CHAIN_ID, HOST, MARKET, ended, open_ledger, opened

ADDRESS = "0x" + "11" * 20
PAYOUT = "0x" + "99" * 20
DEPLOYMENT = Deployment(CHAIN_ID, ADDRESS, ADDRESS, MARKET, ADDRESS, ADDRESS, ADDRESS, ADDRESS)
ALWAYS = WithdrawalPolicy(0, 0, 0, 5.0, 0)
NEVER = WithdrawalPolicy(10**9, 10**30, 10**30, 0.0, 0)
NOW = Block(2, "0x", "0x", BlockTime(5000), Wei(1))


@dataclass
class Earnings:
    """The earnings contract's view; what our withdrawals took is read off the chain's effects."""

    chain: FakeChain
    credited: int = 0
    taken_by_others: int = 0
    asked: int = 0

    def withdrawn(self):
        bodies = [body for block in self.chain.blocks for body in block.bodies]
        amounts = [body.data[4:36] for body in bodies if body.function == "withdraw"]
        return sum(int.from_bytes(amount, "big") for amount in amounts)

    async def earnings(self, host, asset, block="latest"):
        self.asked += 1
        return self.credited - self.taken_by_others - self.withdrawn()


class Purse:
    def __init__(self, directory, policy=ALWAYS, payout=PAYOUT):
        self.directory, self.policy, self.payout = directory, policy, payout
        self.chain, self.wallet = FakeChain(), new_wallet()
        self.contracts = Earnings(self.chain)
        self.height = 1

    async def start(self):
        self.ledger = await open_ledger(self.directory)
        self.withdrawer = Withdrawer(
            ledger=self.ledger,
            queue=TransactionQueue(
                self.ledger,
                self.chain,
                self.wallet,
                confirmations=1,
                metrics=Metrics("chain"),
                settings=QueueSettings(poll_seconds=0.005),
            ),
            contracts=self.contracts,
            calls=Calls(DEPLOYMENT),
            host=HOST,
            payout=self.payout,
            policy=self.policy,
        )

    async def restart(self):
        await self.ledger.close()
        await self.start()

    async def earn(self, job_id, amount):
        await self.ledger.record(opened(job_id=job_id))
        await self.ledger.record(ended(job_id, amount))
        self.contracts.credited += amount

    async def step(self, seconds=0):
        """One more confirmed block, then the withdrawer's turn."""
        self.height = max(self.height, len(self.chain.blocks)) + 1
        await self.ledger.record(CursorMoved(BlockNumber(self.height), f"0x{self.height}"))
        now = Block(self.height, "0x", "0x", BlockTime(5000 + seconds), Wei(1))
        await self.withdrawer.step(ASSET, now)

    @property
    def withdrawn(self):
        return {job: session.withdrawn for job, session in self.ledger.sessions.items()}

    @property
    def amounts(self):
        """What was transferred to the payout address, in order."""
        bodies = [body for block in self.chain.blocks for body in block.bodies]
        data = [body.data for body in bodies if body.function == "transfer"]
        return [int.from_bytes(one[36:68], "big") for one in data]


@pytest.fixture
async def purse(tmp_path):
    purse = Purse(tmp_path)
    await purse.start()
    yield purse
    await purse.ledger.close()


async def test_one_withdrawal_serves_all_sessions(purse):
    for job_id, amount in ((7, 100), (8, 200), (9, 50)):
        await purse.earn(job_id, amount)
    await purse.step()
    assert purse.chain.effects == ["withdraw", "transfer"]
    assert purse.withdrawn == {7: 100, 8: 200, 9: 50}
    assert purse.amounts == [350]
    hashes = {session.withdrawn_tx for session in purse.ledger.sessions.values()}
    assert hashes == {purse.ledger.mined["withdraw/all/0"].tx_hash}
    assert (purse.ledger.unsettled, purse.ledger.withdrawals.open) == ({}, {})


async def test_without_a_payout_address_earnings_stay_with_the_host(purse):
    purse.payout = ""
    await purse.restart()
    await purse.earn(7, 100)
    await purse.step()
    assert purse.chain.effects == ["withdraw"]
    assert purse.withdrawn == {7: 100}


PLACES = ["before journal", "before broadcast", "after broadcast"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", ["withdraw", "transfer"])
async def test_a_crash_at_any_step_pays_exactly_once(purse, place, which, monkeypatch):
    await purse.earn(7, 100)
    if which == "transfer":
        real = purse.chain.prepare
        calls = []

        async def prepare(call, *rest, **more):
            calls.append(call.function)
            if call.function == "transfer" and calls.count("transfer") == 1:
                purse.chain.die_at = place
            return await real(call, *rest, **more)

        monkeypatch.setattr(purse.chain, "prepare", prepare)
    else:
        purse.chain.die_at = place
    with pytest.raises(Died):
        await purse.step()
    await purse.restart()
    for _ in range(3):
        await purse.step()
    assert purse.chain.effects == ["withdraw", "transfer"]
    assert (purse.amounts, purse.withdrawn) == ([100], {7: 100})


async def test_the_schedule_collects_sessions(purse):
    purse.policy = WithdrawalPolicy(100, 0, 0, 5.0, 0)
    await purse.restart()
    await purse.earn(7, 100)
    await purse.step()
    await purse.earn(8, 10)
    await purse.step(seconds=50)
    assert purse.amounts == [100]
    await purse.earn(9, 20)
    await purse.step(seconds=100)
    assert purse.amounts == [100, 30]


async def test_a_small_sum_stays_and_is_not_asked_for(purse):
    purse.policy = WithdrawalPolicy(0, 0, 500, 5.0, 0)
    await purse.restart()
    await purse.earn(7, 499)
    await purse.step()
    assert (purse.chain.effects, purse.contracts.asked) == ([], 0)
    await purse.earn(8, 1)
    await purse.step()
    assert purse.amounts == [500]


async def test_credit_from_before_the_journal_comes_along(purse):
    purse.contracts.credited = 1000
    await purse.earn(7, 100)
    await purse.step()
    assert (purse.amounts, purse.withdrawn) == ([1100], {7: 100})


async def test_what_other_software_took_is_booked_when_it_stays_away(purse):
    await purse.earn(7, 100)
    await purse.earn(8, 200)
    purse.contracts.taken_by_others = 100
    for _ in range(GONE_BLOCKS):
        await purse.step()
        assert purse.withdrawn == {7: None, 8: None}
    await purse.step()
    assert (purse.withdrawn, purse.amounts) == ({7: 100, 8: 200}, [200])
    assert purse.ledger.session(7).withdrawn_tx == ""


async def test_one_odd_balance_books_nothing(purse):
    await purse.earn(7, 100)
    purse.contracts.taken_by_others = 100
    await purse.step()
    purse.contracts.taken_by_others = 0
    await purse.step()
    assert (purse.withdrawn, purse.amounts) == ({7: 100}, [100])
    assert purse.ledger.session(7).withdrawn_tx != ""


async def test_after_a_reorganisation_it_is_sent_and_booked_again_and_paid_once(purse):
    """Withdrawal and payout were booked; their blocks go away, the session's end stays."""
    await purse.ledger.record(CursorMoved(BlockNumber(1), "0x1"))
    purse.chain.mine()
    await purse.earn(7, 100)
    await purse.step()
    before = dict(purse.ledger.mined)
    purse.chain.reorganise(2)
    await purse.ledger.record(RewoundTo(BlockNumber(1), "0x1"))
    assert purse.withdrawn == {7: None}
    assert sorted(purse.ledger.outbox.pending) == ["payout/all/0", "withdraw/all/0"]
    for _ in range(4):
        await purse.withdrawer.queue.step()
        await purse.step()
    assert purse.ledger.withdrawals.count == 1
    assert {key: one.tx_hash for key, one in purse.ledger.mined.items()} == {
        key: one.tx_hash for key, one in before.items()
    }
    assert (purse.amounts, purse.withdrawn) == ([100], {7: 100})
    assert purse.ledger.session(7).withdrawn_tx == before["withdraw/all/0"].tx_hash


async def test_a_refused_withdrawal_is_planned_anew(purse):
    await purse.earn(7, 100)
    purse.chain.refuses_calls = "withdraw"
    with pytest.raises(NodeError):
        await purse.step()
    assert purse.ledger.withdrawals.open == {}
    purse.chain.refuses_calls = ""
    await purse.step()
    assert (purse.amounts, purse.withdrawn) == ([100], {7: 100})


async def test_a_failed_payout_is_not_doubled(purse):
    await purse.earn(7, 100)
    purse.chain.refuses_calls = "transfer"
    with pytest.raises(NodeError):
        await purse.step()
    assert purse.withdrawn == {7: 100}
    purse.chain.refuses_calls = ""
    for _ in range(3):
        await purse.step()
    assert purse.amounts == [100]


async def test_an_address_that_cannot_be_paid_is_corrected_in_the_settings(purse):
    """The plan names the old payee; the signing policy knows only the new one."""
    await purse.earn(7, 100)
    purse.chain.refuses_calls = "transfer"
    with pytest.raises(NodeError):
        await purse.step()
    purse.chain.refuses_calls, purse.payout = "", "0x" + "88" * 20
    await purse.restart()
    await purse.step()
    assert purse.amounts == [100]
    (paid,) = [b for block in purse.chain.blocks for b in block.bodies if b.function == "transfer"]
    assert "0x" + paid.data[16:36].hex() == purse.payout
    assert purse.ledger.withdrawals.open == {}


async def test_a_payout_that_a_lost_part_of_the_journal_made_is_not_made_again(purse):
    """The backup is from between withdrawal and payout."""
    await purse.earn(7, 100)
    purse.chain.refuses_calls = "transfer"
    with pytest.raises(NodeError):
        await purse.step()
    copy = await purse.ledger.backup(purse.directory / "backups")
    purse.chain.refuses_calls = ""
    await purse.step()
    assert purse.amounts == [100]
    await purse.ledger.close()
    (purse.directory / "j.db").unlink()
    restore_backup(copy.path, purse.directory / "j.db")
    await purse.start()
    assert (purse.ledger.is_restored, len(purse.ledger.withdrawals.open)) == (True, 1)
    for _ in range(5):
        await purse.step()
    assert (purse.amounts, purse.ledger.withdrawals.open) == ([100], {})
    assert purse.withdrawn == {7: 100}


async def test_more_than_64_bits_of_credit_leave_in_parts(purse):
    """30 native coins, or 30 tokens of 18 decimals; what is nobody's comes along as it fits."""
    share = 9 * 10**18
    for job_id in (7, 8, 9):
        await purse.earn(job_id, share)
    purse.contracts.credited += 3 * 10**18
    for _ in range(4):
        await purse.step()
    assert purse.withdrawn == {7: share, 8: share, 9: share}
    assert purse.amounts == [MAX_AMOUNT] * 3
    await purse.earn(10, 5)
    await purse.step()
    assert sum(purse.amounts) == 30 * 10**18 + 5


async def test_considering_starts_one_task_per_asset(purse):
    await purse.earn(7, 100)
    await purse.ledger.record(CursorMoved(BlockNumber(2), "0x2"))
    now = Block(2, "0x", "0x", BlockTime(5000), Wei(1))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            purse.withdrawer.consider(now, tasks)
    assert purse.amounts == [100]


def test_earnings_in_the_native_coin_are_sent_as_such():
    to = "0x" + "44" * 20
    native, asset = payment_of(NATIVE, to, 7), payment_of(ASSET, to, 7)
    assert (native.to, native.value, native.data) == (to, 7, b"")
    assert (asset.to, asset.value) == (ASSET, 0)


async def test_the_operator_takes_out_what_schedule_and_size_hold_back(tmp_path):
    purse = Purse(tmp_path, policy=NEVER)
    await purse.start()
    purse.withdrawer.is_automatic = False
    await purse.earn(7, 100)
    await purse.step()
    async with asyncio.TaskGroup() as tasks:
        purse.withdrawer.consider(NOW, tasks)
    assert purse.withdrawn == {7: None}
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(purse.withdrawer.withdraw_now(ASSET))
        while not asked.done():
            purse.withdrawer.consider(NOW, tasks)
            await asyncio.sleep(0.01)
    plan, mined = asked.result()
    assert (plan.amount, plan.job_ids, plan.payout) == (100, (7,), PAYOUT)
    assert mined.key == "withdraw/all/0"
    assert purse.withdrawn == {7: 100}
    assert purse.amounts == [100]
    with pytest.raises(NotFound, match="no earnings"):
        await purse.withdrawer.withdraw_now(ASSET)
    await purse.ledger.close()


async def test_the_operator_is_told_why_a_withdrawal_does_not_go_through(purse):
    """Not after a quarter of an hour: the payout address cannot be paid."""
    await purse.earn(7, 100)
    await purse.ledger.record(CursorMoved(BlockNumber(2), "0x2"))
    purse.chain.refuses_calls = "transfer"
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(refused_withdrawal(purse))
        while not asked.done():
            purse.withdrawer.consider(NOW, tasks)
            await asyncio.sleep(0.01)
    assert "Not active" in asked.result()
    assert purse.withdrawn == {7: 100}


async def refused_withdrawal(purse):
    with pytest.raises(Rejected) as refusal:
        await purse.withdrawer.withdraw_now(ASSET)
    return refusal.value.message
