"""A purpose is served once, wherever the process dies and whatever chain and pool do."""

import asyncio

import pytest

from nodeapp.chain.queue import QueueSettings
from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.outbox import TransactionDropped, TransactionSigned
from nodeapp.evm.errors import Reverted
from nodeapp.evm.refusals import InsufficientFunds
from tests.fakes.mempool import Died, FakeChain
from tests.reliability.account import FEES, KEY, QUICK, call


async def test_a_purpose_is_served_once(account):
    first = await account.execute()
    assert await account.execute() == first
    assert (account.chain.effects, account.chain.broadcasts, account.pending) == (["claim"], 1, {})
    assert (first.block_hash, first.block_time, first.cost) == ("0x1", 1001, 21_000 * 22)


@pytest.mark.parametrize("place", ["before journal", "before broadcast", "after broadcast"])
@pytest.mark.parametrize("others", [0, 1])
async def test_a_crash_at_any_step_has_exactly_one_effect(account, place, others):
    """`others`: another purpose runs first after the restart; it does not get the nonce."""
    account.chain.die_at = place
    with pytest.raises(Died):
        await account.execute()
    await account.restart()
    for _ in range(others):
        await account.execute("complete/8", "complete")
    await account.execute()
    assert sorted(account.chain.effects) == sorted(["claim"] + ["complete"] * others)
    await account.restart()
    await account.execute()
    assert account.chain.effects.count("claim") == 1


async def test_the_same_bytes_are_sent_again_after_a_crash(account):
    account.chain.die_at = "before broadcast"
    with pytest.raises(Died):
        await account.execute()
    signed = account.pending[KEY].newest
    await account.restart()
    assert (await account.execute()).tx_hash == signed.tx_hash


async def test_what_nobody_waits_for_is_sent_and_judged_too(account):
    account.chain.die_at = "before broadcast"
    with pytest.raises(Died):
        await account.execute()
    await account.restart()
    await account.until(lambda: KEY in account.ledger.mined)


async def test_empty_pockets_keep_what_is_signed_and_say_so(account):
    account.chain.refuse = "insufficient funds for gas * price + value: balance 0"
    with pytest.raises(InsufficientFunds, match="insufficient funds"):
        await account.execute()
    nonce = account.pending[KEY].nonce
    assert (await account.execute()).key == KEY
    assert (nonce, account.chain.effects) == (0, ["claim"])


async def test_nothing_is_signed_that_cannot_be_paid(account):
    account.chain.funds = 100
    with pytest.raises(InsufficientFunds, match=r"holds 0\.000000000 native coin.*send some"):
        await account.execute()
    assert (account.pending, account.chain.broadcasts) == ({}, 0)


async def test_a_reverted_transaction_frees_the_key_and_its_cost_is_known(account):
    account.chain.revert = True
    with pytest.raises(Reverted) as caught:
        await account.execute()
    assert caught.value.reason == "Not active"
    assert (account.pending, account.ledger.mined) == ({}, {})
    assert [(end.key, end.cost > 0) for end in account.ledger.failed] == [(KEY, True)]
    account.chain.revert = False
    await account.execute()
    assert account.chain.effects == ["claim"]


async def test_what_the_contract_would_refuse_is_not_signed(account):
    account.chain.refuses_calls = "claim"
    with pytest.raises(Reverted, match="Not active"):
        await account.execute()
    assert (account.pending, account.chain.broadcasts) == ({}, 0)


async def test_a_chain_that_does_not_answer_keeps_what_was_signed(account):
    account.chain.die_at = "before broadcast"
    with pytest.raises(Died):
        await account.execute()
    account.chain.is_down = True
    with pytest.raises(Unavailable):
        await account.execute()
    assert list(account.pending) == [KEY]
    account.chain.is_down = False
    await account.execute()
    assert account.chain.effects == ["claim"]


async def test_several_keys_are_under_way_at_once(account):
    account.chain.automine = False
    async with asyncio.TaskGroup() as tasks:
        for number in range(12):
            tasks.create_task(account.execute(f"claim/{number}/0", f"c{number}"))
        await account.until(lambda: len(account.chain.pool) == QUICK.max_in_flight)
        assert sorted(account.chain.pool) == list(range(QUICK.max_in_flight))
        account.chain.automine = True
        account.chain.mine()
    assert sorted(account.chain.effects) == sorted(f"c{number}" for number in range(12))


async def test_a_nonce_that_other_software_used_frees_the_key(account):
    account.chain.die_at = "before broadcast"
    with pytest.raises(Died):
        await account.execute()
    account.chain.use_nonce(0)
    with pytest.raises(Rejected, match="nonce 0 was used by another transaction 0xf0"):
        await account.execute()
    await account.execute()
    assert account.chain.effects == ["claim"]
    assert account.ledger.outbox.last_end(KEY).key == KEY


async def test_missing_receipts_are_no_proof_that_it_was_not_done(account):
    account.chain.hides_receipts = True
    account.settings = QueueSettings(fees=FEES, poll_seconds=0.005, mined_seconds=0.1)
    await account.restart()
    with pytest.raises(Unavailable, match="it stays signed"):
        await account.execute()
    assert list(account.pending) == [KEY]
    account.chain.hides_receipts = False
    await account.execute()
    assert account.chain.effects == ["claim"]


async def test_a_payment_is_not_repeated_while_its_fate_is_unknown(account):
    account.chain.hides_receipts, account.chain.has_old_state = True, False
    with pytest.raises(Unavailable, match="cannot be told"):
        await account.execute("payout/1", "transfer", is_payment=True)
    with pytest.raises(Unavailable, match="cannot be told"):
        await account.execute("payout/1", "transfer", is_payment=True)
    account.chain.hides_receipts = False
    await account.execute("payout/1", "transfer", is_payment=True)
    assert account.chain.effects == ["transfer"]


async def test_a_failed_payment_waits_until_no_reorganisation_can_bring_it_back(account):
    account.chain.revert = True
    with pytest.raises(Reverted):
        await account.execute("payout/1", "transfer", is_payment=True)
    account.chain.revert = False
    with pytest.raises(Unavailable, match="tried again when that block is final"):
        await account.execute("payout/1", "transfer", is_payment=True)
    assert account.chain.effects == []


async def test_a_lost_nonce_is_filled_with_nothing(account):
    """As after a pool forgot what other software had sent before ours."""
    lost = FakeChain(automine=False)
    signed = await lost.prepare(call(), account.wallet, 2)
    await account.ledger.record(TransactionSigned(KEY, 2, signed.hash, signed.raw, 22, 2))
    await account.until(lambda: KEY in account.ledger.mined)
    functions = [body.function for block in account.chain.blocks for body in block.bodies]
    assert functions == ["cancel", "cancel", "claim"]
    await account.until(lambda: not account.pending)
    ends = [account.ledger.outbox.last_end(f"gap/{nonce}") for nonce in (0, 1)]
    assert [isinstance(end, TransactionDropped) for end in ends] == [True, True]


async def test_nonces_of_the_operators_other_software_are_left_alone(account):
    account.chain.automine = False
    body = await FakeChain().prepare(call("foreign"), account.wallet, 0)
    await account.chain.broadcast(body)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(account.execute())
        await account.until(lambda: len(account.chain.pool) == 2)
        assert account.pending[KEY].nonce == 1
        account.chain.mine()
    assert account.chain.effects == ["foreign", "claim"]


async def test_a_pool_that_counts_too_many_is_not_believed(account, monkeypatch):
    async def nonce(_address, block="pending"):
        return 1_000_000 if block == "pending" else 0

    monkeypatch.setattr(account.chain, "nonce", nonce)
    with pytest.raises(Unavailable, match="the pool counts 1000000 waiting"):
        await account.execute()


@pytest.mark.parametrize(
    "words",
    [
        "nonce too low: next nonce 5, tx nonce 3",
        "replacement transaction underpriced",
        "INTERNAL_ERROR: could not replace existing tx",
        "nonce too high",
        "transaction underpriced: gas tip cap 1, minimum needed 100",
        "max fee per gas less than block base fee: address 0x12",
        "already known",
    ],
)
async def test_whatever_a_client_says_the_purpose_is_served_once(account, words):
    account.chain.refuse = words

    async def execute():
        while KEY not in account.ledger.mined:
            try:
                await account.execute()
            except (Unavailable, Rejected):
                await asyncio.sleep(0.005)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(execute())
        while KEY not in account.ledger.mined:
            account.chain.mine()
            await asyncio.sleep(0.005)
    assert account.chain.effects == ["claim"]
