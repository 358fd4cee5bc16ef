"""What waits too long is replaced by a dearer one, within the cap, and cancelled when it became pointless."""

import asyncio

import pytest

from nodeapp.core.errors import Rejected, Unavailable
from tests.reliability.account import FEES, KEY, QUICK


async def test_a_transaction_that_waits_too_long_is_replaced_by_a_dearer_one(account):
    chain = account.chain
    chain.automine = False
    async with asyncio.TaskGroup() as tasks:
        done = tasks.create_task(account.execute())
        await account.until(lambda: chain.pool)
        first = chain.pool[0]
        chain.base_fee = 40
        chain.mine(QUICK.replace_after_blocks)
        await account.until(lambda: chain.pool[0] != first)
        chain.mine()
    errand = account.ledger.outbox.recent[0]
    assert len(errand.attempts) == 2
    assert done.result().tx_hash == errand.newest.tx_hash
    assert errand.newest.max_fee >= first.max_fee * 1.125
    assert errand.newest.priority_fee >= first.tip * 1.125
    assert chain.effects == ["claim"]


async def test_any_attempt_may_be_the_mined_one(account):
    chain = account.chain
    chain.automine = False
    async with asyncio.TaskGroup() as tasks:
        done = tasks.create_task(account.execute())
        await account.until(lambda: chain.pool)
        first = chain.pool[0]
        chain.base_fee = 30
        chain.mine(QUICK.replace_after_blocks)
        await account.until(lambda: len(account.pending[KEY].attempts) == 2)
        chain.pool[0], chain.base_fee = first, 1
        chain.mine()
    assert done.result().tx_hash == first.hash
    assert chain.effects == ["claim"]


async def test_replacing_stops_at_the_cap_and_goes_on_waiting(account):
    chain = account.chain
    chain.automine = False
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(account.execute())
        await account.until(lambda: chain.pool)
        chain.base_fee = 5000
        for _ in range(40):
            chain.mine(QUICK.replace_after_blocks)
            await account.queue.step()
        offered = [attempt.max_fee for attempt in account.pending[KEY].attempts]
        assert max(offered) <= FEES.max_fee
        assert offered == sorted(offered)
        assert len(offered) < 40
        chain.base_fee = 5
        chain.mine()
    assert chain.effects == ["claim"]


async def test_a_refused_replacement_does_not_hold_up_the_others(account, monkeypatch):
    chain, sign = account.chain, account.chain.prepare
    chain.automine = False

    async def prepare(call, signer, nonce, *, gas=None, fees=None):
        if fees.max_fee > 22:
            raise Rejected("not signed, gas per day")
        return await sign(call, signer, nonce, gas=gas, fees=fees)

    async def refused():
        with pytest.raises(Rejected, match="gas per day"):
            await account.execute()

    monkeypatch.setattr(chain, "prepare", prepare)
    async with asyncio.TaskGroup() as tasks:
        told = tasks.create_task(refused())
        await account.until(lambda: chain.pool)
        other = tasks.create_task(account.execute("complete/8", "complete"))
        await account.until(lambda: len(chain.pool) == 2)
        chain.base_fee = 30
        chain.mine(QUICK.replace_after_blocks)
        await told
        chain.base_fee = 10
        chain.mine()
    assert other.result().key == "complete/8"
    await account.until(lambda: KEY in account.ledger.mined)


async def test_gas_above_the_cap_signs_nothing(account):
    account.chain.base_fee = 1001
    with pytest.raises(Unavailable, match=r"above chain\.max_fee_gwei"):
        await account.execute()
    assert account.pending == {}


async def test_a_stuck_transaction_that_became_pointless_is_cancelled(account):
    chain = account.chain
    chain.automine = False

    async def refused():
        with pytest.raises(Rejected, match="was not done: cancelled"):
            await account.execute()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(refused())
        await account.until(lambda: chain.pool)
        chain.base_fee, chain.refuses_calls = 30, "claim"
        chain.mine(QUICK.replace_after_blocks)
        await account.until(lambda: chain.pool[0].function == "cancel")
        chain.mine()
    assert chain.effects == []
    chain.refuses_calls, chain.automine = "", True
    await account.execute()
    assert chain.effects == ["claim"]
