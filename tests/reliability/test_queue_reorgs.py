"""What a reorganisation took out of the chain is sent again, to the session it was for and no other."""

import asyncio

from nodeapp.chain.ledger import CursorMoved, RewoundTo
from nodeapp.core.session import (
    ClaimPrepared,
    RenterSentReceipt,
    RequestAuthorised,
    TokensProduced,
)
from nodeapp.core.units import BlockNumber, Tokens
from tests.fakes.paid_session import (
    JOB,
    claim_of,
    opened,
    request_id,
    running_hash,
)
from tests.reliability.account import KEY, QUICK


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
