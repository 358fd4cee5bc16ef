"""What no host settles comes back to its renter: after the time-out for gas, before it for a fee."""

from __future__ import annotations

import pytest

from nodeapp.core.errors import NotFound
from nodeapp.evm.contracts import SessionStatus
from nodeapp.renter.record import SessionHead, SessionRecord, newest_session
from nodeapp.renter.refund import open_records, refunds
from tests.contracts.market import DEPOSIT, Market

FEE_TOKENS = 100


async def ended(market: Market, *jobs: int, at_once: bool = False) -> list[tuple[int, str, int]]:
    found = refunds(market.contracts, market.renter, jobs, at_once=at_once)
    return [(one.job_id, one.outcome, one.refund) async for one in found]


async def test_a_session_without_a_claim_comes_back_whole_after_its_time_out(
    market: Market,
) -> None:
    job = await market.open()
    assert await ended(market, job) == [(job, "waits", 0)]
    await market.pass_seconds(301)
    assert await ended(market, job) == [(job, "timed_out", DEPOSIT)]
    assert (await market.contracts.session(job)).status is SessionStatus.TIMED_OUT
    assert await ended(market, job) == [], "it is over"


async def test_who_does_not_wait_pays_the_fee_and_the_host_gets_it(market: Market) -> None:
    job = await market.open()
    price = (await market.contracts.session(job)).price_per_token
    fee = FEE_TOKENS * price // 1000
    assert await ended(market, job, at_once=True) == [(job, "cancelled", DEPOSIT - fee)]
    usdc = market.devnet.deployment.usdc
    assert await market.contracts.earnings(market.host.address, usdc) == fee


async def test_a_claimed_session_of_a_host_that_is_gone_pays_the_claim_only(
    market: Market,
) -> None:
    job = await market.open()
    await market.pass_seconds(10)
    claim = market.calls.submit_proof(job, 150, b"\x22" * 32, proof_cid="p", delta_cid="d")
    await market.transactions.send(claim, market.host)
    await market.pass_seconds(301)
    price = (await market.contracts.session(job)).price_per_token
    assert await ended(market, job) == [(job, "timed_out", DEPOSIT - 150 * price // 1000)]


async def test_others_sessions_and_unknown_ones_are_left_alone(market: Market) -> None:
    job = await market.open()
    found = refunds(market.contracts, market.host, [job, job + 1000], at_once=True)
    assert [one async for one in found] == []


def head(market: Market, job_id: int, marketplace: str) -> SessionHead:
    chain_id = market.devnet.deployment.chain_id
    return SessionHead(chain_id, marketplace, job_id, market.host.address, "p", "m", "", ())


async def test_records_of_another_marketplace_are_not_asked_about(market: Market, tmp_path) -> None:
    here = market.devnet.deployment.marketplace
    with pytest.raises(NotFound):
        newest_session(tmp_path)
    for number, marketplace in ((9, here), (10, here), (11, "0x" + "11" * 20)):
        SessionRecord.create(tmp_path, head(market, number, marketplace))
    assert open_records(tmp_path, market.contracts) == (9, 10)
    assert newest_session(tmp_path) == 11
