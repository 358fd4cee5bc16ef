"""Following a real chain through endpoints that lie and fail, one fault at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.devnet.main import Devnet
from nodeapp.devnet.provision import provision_renter
from nodeapp.evm.accounts import new_wallet
from nodeapp.evm.calls import send_native
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.errors import Disagreement
from nodeapp.evm.provider import Provider
from nodeapp.evm.steady import SteadyProvider
from nodeapp.evm.transactions import Transactions
from tests.fakes.fault_proxy import BEHIND_BLOCKS, FAULTS, FORGED_READS, FaultProxy

CALL_SECONDS = 0.4


@dataclass
class Following:
    """A chain that is followed through proxies."""

    devnet: Devnet
    proxies: list[FaultProxy]
    provider: Provider
    steady: SteadyProvider

    async def mine(self, blocks: int = 1) -> int:
        await self.devnet.provider.request("anvil_mine", [hex(blocks)])
        return await self.devnet.provider.block_number()

    async def logs(self):
        head = await self.steady.block()
        return await self.steady.logs({}, BlockNumber(0), head.number)

    async def true_logs(self):
        head = await self.devnet.provider.block_number()
        return await self.devnet.provider.logs({}, BlockNumber(0), head)

    @property
    def leader(self) -> int:
        (endpoint,) = self.steady.endpoints
        return self.provider.endpoints.index(endpoint)


@contextlib.asynccontextmanager
async def following(devnet: Devnet, proxies: int) -> AsyncIterator[Following]:
    async with contextlib.AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(FaultProxy(devnet.anvil.url).running())
            for _ in range(proxies)
        ]
        provider = await stack.enter_async_context(
            Provider(
                [proxy.url for proxy in started],
                chain_id=devnet.deployment.chain_id,
                call_timeout_seconds=CALL_SECONDS,
            )
        )
        steady = SteadyProvider(provider, unix_seconds=time.time)
        yield Following(devnet, started, provider, steady)


@pytest.fixture
async def two(devnet: Devnet) -> AsyncIterator[Following]:
    async with following(devnet, 2) as both:
        yield both


@pytest.fixture
async def three(devnet: Devnet) -> AsyncIterator[Following]:
    async with following(devnet, 3) as all_three:
        yield all_three


async def _recovers(chain: Following, proxy: FaultProxy) -> None:
    """After the fault the endpoint is believed again without anybody's doing."""
    proxy.set("")
    for endpoint in chain.provider.endpoints:
        endpoint.health = type(endpoint.health)()  # the rest is over
        endpoint._must_rest_until = 0.0
    head = await chain.mine()
    await chain.steady.survey(0)
    assert (await chain.steady.block()).number == head
    assert len(chain.steady._witnesses) == len(chain.provider.endpoints) - 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_one_bad_endpoint_of_three_changes_nothing(three, fault) -> None:
    await provision_renter(three.devnet.provider, three.devnet.deployment, new_wallet())
    await three.steady.survey(0)
    bad = three.proxies[0]
    bad.set(fault)
    head = await three.mine(5)
    for _ in range(3):
        with contextlib.suppress(Unavailable):
            await three.steady.survey(0)
            truth = await three.true_logs()
            assert await three.logs() == truth
            break
    else:
        pytest.fail("three tries were not enough")
    agreed = await three.steady.block()
    assert agreed == await three.devnet.provider.block(agreed.number)
    assert agreed.number == head
    await _recovers(three, bad)


@pytest.mark.parametrize("fault", ["down", "limited", "html", "wrong_chain", "wrong_shape"])
async def test_the_second_endpoint_takes_over(two, fault) -> None:
    two.proxies[0].set(fault)
    await two.mine()
    await two.steady.survey(0)
    assert two.leader == 1
    assert await two.logs() == await two.true_logs()


async def test_two_that_tell_different_blocks_stop_the_following(two) -> None:
    await two.steady.survey(0)
    before = await two.steady.block()
    two.proxies[1].set("other_hash")
    await two.mine()
    with pytest.raises(Disagreement, match="rpc endpoints disagree on block"):
        await two.steady.survey(0)
    assert "secret-key" not in two.steady.disagreement
    assert await two.steady.block() == before
    two.proxies[1].set("")
    await two.steady.survey(0)
    assert two.steady.disagreement == ""
    assert (await two.steady.block()).number == before.number + 1


async def test_two_that_tell_different_events_stop_the_following(two) -> None:
    await two.mine()
    await two.steady.survey(0)
    two.proxies[0].set("missing_logs")
    with pytest.raises(Disagreement, match="disagree on the events of blocks 0 to"):
        await two.logs()
    two.proxies[0].set("")
    await two.steady.survey(0)
    assert await two.logs() == await two.true_logs()


async def test_a_head_that_only_one_of_two_has_is_not_taken(two) -> None:
    two.proxies[0].set("ahead")
    head = await two.mine()
    await two.steady.survey(0)
    assert (await two.steady.block()).number == head
    assert await two.logs() == await two.true_logs()


async def test_an_endpoint_that_is_behind_holds_back_but_loses_nothing(two) -> None:
    two.proxies[0].set("behind")
    head = await two.mine(10)
    await two.steady.survey(0)
    assert (await two.steady.block()).number == head - BEHIND_BLOCKS
    truth = await two.devnet.provider.logs({}, BlockNumber(0), BlockNumber(head - BEHIND_BLOCKS))
    assert await two.logs() == truth


async def test_the_confirmed_block_is_voted_on(two) -> None:
    head = await two.mine(10)
    await two.steady.survey(3)
    asked = [proxy.methods.count("eth_getBlockByNumber") for proxy in two.proxies]
    assert asked[1 - two.leader] == 2  # newest block and confirmed block
    assert (await two.steady.block()).number == head


async def test_without_a_new_block_only_the_one_in_use_is_asked(two) -> None:
    await two.steady.survey(0)
    before = [proxy.requests for proxy in two.proxies]
    for _ in range(5):
        await two.steady.survey(0)
    after = [proxy.requests for proxy in two.proxies]
    assert (after[two.leader] - before[two.leader], after[1 - two.leader]) == (
        5,
        before[1 - two.leader],
    )


async def test_small_ranges_are_learnt_for_one_endpoint_only(two) -> None:
    two.proxies[0].set("small_ranges")
    await two.mine(40)
    head = await two.provider.block_number()
    truth = await two.true_logs()
    assert await two.provider.logs({}, BlockNumber(0), head) == truth
    spans = [endpoint.log_span.blocks for endpoint in two.provider.endpoints]
    assert spans == [4, 2000]
    calls = two.proxies[0].methods.count("eth_getLogs")
    assert await two.provider.logs({}, BlockNumber(0), head) == truth
    assert two.proxies[0].methods.count("eth_getLogs") - calls < 15


async def test_an_endpoint_behind_is_not_asked_about_a_newer_block(two) -> None:
    two.proxies[0].set("behind")
    head = BlockNumber(await two.mine(5))
    assert (await two.provider.block(head)).number == head
    address = two.devnet.deployment.marketplace
    await two.provider.native_balance(address, head)
    assert "eth_getBalance" not in two.proxies[0].methods
    assert "eth_getBalance" in two.proxies[1].methods


async def test_a_limited_endpoint_is_left_alone_as_long_as_it_asked(devnet) -> None:
    async with following(devnet, 1) as one:
        one.proxies[0].set("limited")
        with pytest.raises(Unavailable, match="http status 429"):
            await one.provider.block()
        one.proxies[0].set("")
        asked = one.proxies[0].requests
        with pytest.raises(Unavailable, match="rests: http status 429"):
            await one.provider.block()
        assert one.proxies[0].requests == asked


async def test_the_chain_id_is_asked_again_after_a_failure(devnet) -> None:
    async with following(devnet, 1) as one:
        await one.provider.block()
        one.proxies[0].set("down")
        with pytest.raises(Unavailable):
            await one.provider.block()
        one.proxies[0].set("wrong_chain")
        with pytest.raises(Rejected, match="serves chain id 8453, expected 31337"):
            await one.provider.block()
        one.proxies[0].set("")
        await one.provider.block()


async def test_many_blocks_come_in_batches(two) -> None:
    head = await two.mine(120)
    numbers = [BlockNumber(number) for number in range(head - 110, head)]
    blocks = await two.provider.blocks(numbers)
    assert sorted(blocks) == numbers
    assert all(block.number == number for number, block in blocks.items())
    assert two.proxies[0].requests <= 6


async def test_heads_that_do_not_hang_together_are_not_taken_from_one_alone(devnet) -> None:
    async with following(devnet, 1) as one:
        await one.steady.survey(0)
        before = await one.steady.block()
        await one.mine(3)
        one.proxies[0].set("ahead")
        with pytest.raises(Unavailable, match="does not follow"):
            await one.steady.survey(0)
        assert await one.steady.block() == before
        one.proxies[0].set("")
        await one.steady.survey(0)
        assert (await one.steady.block()).number == before.number + 3


async def test_a_transaction_is_handed_to_every_endpoint(three) -> None:
    wallet = new_wallet()
    await three.devnet.fund_native(wallet.address, Wei(10**18))
    three.proxies[0].set("down")
    transactions = Transactions(three.provider, poll_seconds=0.02)
    receipt = await transactions.send(send_native(three.devnet.owner.address, Wei(1)), wallet)
    assert receipt.succeeded
    assert [proxy.methods.count("eth_sendRawTransaction") for proxy in three.proxies[1:]] == [1, 1]
    signed = await transactions.prepare(
        send_native(three.devnet.owner.address, Wei(2)), wallet, nonce=0
    )
    with pytest.raises(Rejected, match="nonce 0"):
        await transactions.broadcast(signed)


async def test_a_receipt_that_one_endpoint_denies_is_found_at_another(two) -> None:
    wallet = new_wallet()
    await two.devnet.fund_native(wallet.address, Wei(10**18))
    two.proxies[0].set("null_receipts")
    transactions = Transactions(two.provider, poll_seconds=0.02)
    receipt = await transactions.send(send_native(two.devnet.owner.address, Wei(1)), wallet)
    assert receipt.succeeded


async def _next_job_id(chain: Following) -> int:
    contracts = Contracts(chain.steady, chain.devnet.deployment)
    return await contracts.next_job_id((await chain.steady.block()).number)


async def test_what_a_contract_tells_is_asked_of_two(two) -> None:
    await two.steady.survey(0)
    truth = await _next_job_id(two)
    two.proxies[0].set(FORGED_READS)
    with pytest.raises(Disagreement, match="disagree on the nextJobId at block"):
        await _next_job_id(two)
    two.proxies[0].set("down")
    await two.steady.survey(0)
    assert await _next_job_id(two) == truth


async def test_of_three_that_read_a_contract_two_are_believed(three) -> None:
    await three.steady.survey(0)
    truth = await _next_job_id(three)
    three.proxies[0].set(FORGED_READS)
    assert await _next_job_id(three) == truth


async def test_the_first_head_of_all_must_hang_together_too(devnet) -> None:
    async with following(devnet, 1) as one:
        await one.mine(3)
        one.proxies[0].set("ahead")
        with pytest.raises(Unavailable, match="does not follow"):
            await one.steady.survey(0)
