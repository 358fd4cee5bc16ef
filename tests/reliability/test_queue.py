"""A purpose is served once, wherever the process dies and whatever chain and pool do."""

import asyncio

import pytest

from nodeapp.chain.ledger import CursorMoved, Ledger, RewoundTo
from nodeapp.chain.queue import QueueSettings, TransactionQueue
from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.fees import FeePolicy
from nodeapp.core.outbox import TransactionDropped, TransactionSigned
from nodeapp.core.session import (
    ClaimPrepared,
    RenterSentReceipt,
    RequestAuthorised,
    TokensProduced,
)
from nodeapp.core.units import BlockNumber, Tokens, Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.errors import Reverted
from nodeapp.evm.refusals import InsufficientFunds
from nodeapp.service.metrics import Metrics
from tests.fakes.mempool import Died, FakeChain
from tests.fakes.paid_session import HOST, JOB, claim_of, opened, request_id, running_hash

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
        self.ledger = await Ledger.open(
            self.directory / "j.db", owner=HOST, marker=self.directory / "marker"
        )
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


@pytest.fixture
async def account(tmp_path):
    account = Account(tmp_path)
    await account.start()
    yield account
    await account.ledger.close()


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


async def test_only_enough_confirmations_count(account):
    account.confirmations = 3
    await account.restart()
    async with asyncio.TaskGroup() as tasks:
        done = tasks.create_task(account.execute())
        await account.until(lambda: account.chain.effects)
        await account.queue.step()
        assert (account.ledger.mined, done.done()) == ({}, False)
        account.chain.mine(2)
    assert account.ledger.mined[KEY] == done.result()


async def test_what_a_reorganisation_took_out_is_sent_again(account):
    """Before it was deep enough: the queue notices by itself."""
    account.confirmations = 3
    await account.restart()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(account.execute())
        await account.until(lambda: account.chain.effects)
        await account.queue.step()
        sent = account.pending[KEY].newest
        account.chain.reorganise(1)
        assert account.chain.effects == []
        await account.until(lambda: account.chain.effects)
        account.chain.mine(2)
    assert account.ledger.mined[KEY].tx_hash == sent.tx_hash
    assert account.chain.effects == ["claim"]


async def test_what_a_journalled_reorganisation_took_back_is_sent_again(account):
    """After it was booked as mined: the watcher says so."""
    await account.ledger.record(CursorMoved(BlockNumber(0), "0x0"))
    done = await account.execute()
    account.chain.reorganise(1)
    await account.ledger.record(RewoundTo(BlockNumber(0), "0x0"))
    assert (list(account.pending), account.ledger.mined) == ([KEY], {})
    await account.until(lambda: KEY in account.ledger.mined)
    assert account.ledger.mined[KEY].tx_hash == done.tx_hash
    assert account.chain.effects == ["claim"]


async def claimed_and_lost(account):
    """A claim was mined; then its block is gone, and that of the session's creation."""
    ledger = account.ledger
    await ledger.record(CursorMoved(BlockNumber(0), "0x0"))
    await ledger.record(
        opened(block=1),
        RequestAuthorised(JOB, request_id(1), Tokens(300), b"prompt"),
        TokensProduced(JOB, request_id(1), tuple(range(300))),
        RenterSentReceipt(JOB, Tokens(200), running_hash(range(200)), b"signature"),
    )
    await ledger.record(ClaimPrepared(JOB, claim_of(ledger.session(JOB), 200)))
    done = await account.execute()
    account.chain.reorganise(1)
    await ledger.record(RewoundTo(BlockNumber(0), "0x0"))
    return done


async def test_a_claim_waits_until_its_session_is_there_again(account):
    done = await claimed_and_lost(account)
    for _ in range(3):
        await account.queue.step()
    assert account.chain.effects == []
    await account.ledger.record(opened(block=2))
    await account.until(lambda: KEY in account.ledger.mined)
    assert account.ledger.mined[KEY].tx_hash == done.tx_hash
    assert account.chain.effects == ["claim"]


async def test_a_claim_is_never_sent_to_another_renters_session(account):
    """After a reorganisation the job id is another's; the contract would take the tokens of it."""
    await claimed_and_lost(account)
    await account.ledger.record(opened(block=2, deposit=777))
    await account.until(lambda: not account.pending)
    assert (account.chain.effects, account.ledger.mined) == ([], {})
    own = account.ledger.session(JOB).first_interval
    await account.execute(f"complete/7/{own}", "complete")
    assert account.chain.effects == ["complete"]


async def test_a_claim_without_a_session_does_not_hold_up_what_is_behind_it(account):
    await claimed_and_lost(account)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(account.execute("complete/8", "complete"))
        await account.until(lambda: "complete/8" in account.pending)
        account.chain.mine(QUICK.replace_after_blocks + 1)
    assert account.chain.effects == ["complete"]


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
