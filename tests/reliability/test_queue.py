"""A purpose is served once, wherever the process dies."""

import pytest

from nodeapp.chain.ledger import Ledger
from nodeapp.chain.queue import TransactionQueue
from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.outbox import TransactionSigned
from nodeapp.evm.abi import Call
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.errors import Reverted
from nodeapp.service.metrics import Metrics
from tests.fakes.chain import Died, FakeChain
from tests.fakes.paid_session import HOST

KEY = "claim/7/0"


def call(name="claim"):
    return Call(None, name, b"")


async def start(tmp_path, chain):
    ledger = await Ledger.open(tmp_path / "j.db", owner=HOST, marker=tmp_path / "marker")
    queue = TransactionQueue(ledger, chain, new_wallet(), confirmations=1, metrics=Metrics("chain"))
    return ledger, queue


async def test_a_purpose_is_served_once(tmp_path):
    chain = FakeChain()
    ledger, queue = await start(tmp_path, chain)
    first = await queue.execute(KEY, call())
    assert await queue.execute(KEY, call()) == first
    assert (chain.effects, chain.broadcasts, ledger.outbox.pending) == (["claim"], 1, {})
    await ledger.close()


@pytest.mark.parametrize("place", ["before journal", "before broadcast", "after broadcast"])
@pytest.mark.parametrize("others", [0, 1])
async def test_a_crash_at_any_step_has_exactly_one_effect(tmp_path, place, others):
    """`others`: another purpose runs first after the restart and takes the nonce."""
    chain = FakeChain(die_at=place)
    ledger, queue = await start(tmp_path, chain)
    with pytest.raises(Died):
        await queue.execute(KEY, call())
    await ledger.close()
    ledger, queue = await start(tmp_path, chain)
    for _ in range(others):
        await queue.execute("complete/8", call("complete"))
    if others and place == "before broadcast":
        with pytest.raises(Rejected, match="nonce too low"):
            await queue.execute(KEY, call())
    await queue.execute(KEY, call())
    assert chain.effects.count("claim") == 1
    assert chain.effects.count("complete") == others
    await ledger.close()
    ledger, queue = await start(tmp_path, chain)
    await queue.execute(KEY, call())
    assert chain.effects.count("claim") == 1
    await ledger.close()


async def test_the_same_bytes_are_sent_again_after_a_crash(tmp_path):
    chain = FakeChain(die_at="before broadcast")
    ledger, queue = await start(tmp_path, chain)
    with pytest.raises(Died):
        await queue.execute(KEY, call())
    signed = ledger.outbox.pending[KEY].newest
    assert isinstance(signed, TransactionSigned)
    await ledger.close()
    ledger, queue = await start(tmp_path, chain)
    assert (await queue.execute(KEY, call())).tx_hash == signed.tx_hash
    await ledger.close()


async def test_a_refused_broadcast_frees_the_key(tmp_path):
    chain = FakeChain(refuse="insufficient funds")
    ledger, queue = await start(tmp_path, chain)
    with pytest.raises(Rejected, match="insufficient funds"):
        await queue.execute(KEY, call())
    assert ledger.outbox.pending == {}
    await queue.execute(KEY, call())
    assert chain.effects == ["claim"]
    await ledger.close()


async def test_a_reverted_transaction_frees_the_key(tmp_path):
    chain = FakeChain(revert=True)
    ledger, queue = await start(tmp_path, chain)
    with pytest.raises(Reverted):
        await queue.execute(KEY, call())
    assert (ledger.outbox.pending, ledger.mined) == ({}, {})
    chain.revert = False
    await queue.execute(KEY, call())
    assert chain.effects == ["claim"]
    await ledger.close()


async def test_a_chain_that_does_not_answer_keeps_what_was_signed(tmp_path):
    chain = FakeChain(die_at="before broadcast")
    ledger, queue = await start(tmp_path, chain)
    with pytest.raises(Died):
        await queue.execute(KEY, call())
    chain.is_down = True
    with pytest.raises(Unavailable):
        await queue.execute(KEY, call())
    assert list(ledger.outbox.pending) == [KEY]
    chain.is_down = False
    await queue.execute(KEY, call())
    assert chain.effects == ["claim"]
    await ledger.close()
