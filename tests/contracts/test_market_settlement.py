"""JobMarketplace: how a session ends, by whom and when, and who gets what."""

from __future__ import annotations

from dataclasses import replace

from nodeapp.core.units import Wei
from nodeapp.evm.calls import NATIVE
from tests.contracts.world import (
    DEPOSIT,
    ETHER,
    MODEL,
    NATIVE_PRICE,
    NATIVE_TERMS,
    STABLE_PRICE,
    TERMS,
    World,
    refused,
)


def test_the_renter_completes_at_any_time_and_the_money_is_split(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    world.claim(job, 1234)
    before = world.usdc(world.renter)
    receipt = world.send(world.calls.complete_session(job, "conversation"), world.renter)
    payment = 1234 * STABLE_PRICE // 1000
    fee = payment * 1000 // 10_000
    session = world.session(job)
    assert (session["status"], session["conversation"]) == (1, "conversation")
    assert (session["host_share"], session["refund"]) == (payment - fee, DEPOSIT - payment)
    assert world.earned(world.deployment.usdc) == payment - fee
    assert world.usdc(world.deployment.host_earnings) == payment - fee
    assert world.market("accumulatedTreasuryTokens", world.deployment.usdc) == fee
    assert world.usdc(world.renter) - before == DEPOSIT - payment
    events = world.events(receipt)
    assert events["SessionCompleted"]["hostEarnings"] == payment - fee
    assert events["SessionCompletedBy"]["paymentAmount"] == payment
    assert "SessionTimedOut" not in events


def test_the_host_waits_for_the_dispute_window_after_its_last_proof(world: World) -> None:
    job = world.open()
    world.pass_seconds(60)
    world.claim(job, 1000)
    proved = world.session(job)["proved"]
    world.tester.time_travel(proved + 28)
    with refused("Dispute wait"):
        world.complete(job, world.host)
    world.tester.time_travel(proved + 30)
    world.complete(job, world.host)
    assert world.session(job)["status"] == 1


def test_nobody_else_completes(world: World) -> None:
    job = world.open()
    world.pass_seconds(100)
    for sender in (world.stranger, world.owner, world.treasury):
        with refused("Not depositor or host"):
            world.complete(job, sender)


def test_an_end_state_is_final(world: World) -> None:
    job = world.open()
    world.complete(job, world.renter)
    with refused("Not active"):
        world.complete(job, world.renter)
    world.pass_seconds(5000)
    with refused("Not active"):
        world.send(world.calls.trigger_timeout(job), world.stranger)
    with refused("Not active"):
        world.complete(999, world.renter)


def test_a_renter_who_cancels_before_the_first_proof_pays_the_minimum_fee(world: World) -> None:
    job = world.open()
    before = world.usdc(world.renter)
    world.complete(job, world.renter)
    fee = 100 * STABLE_PRICE // 1000
    assert world.session(job)["host_share"] == fee == world.earned(world.deployment.usdc)
    assert world.usdc(world.renter) - before == DEPOSIT - fee
    assert world.market("accumulatedTreasuryTokens", world.deployment.usdc) == 0


def test_a_host_that_ends_a_session_without_proof_gets_nothing(world: World) -> None:
    job = world.open()
    world.pass_seconds(31)
    world.complete(job, world.host)
    session = world.session(job)
    assert (session["host_share"], session["refund"]) == (0, DEPOSIT)
    assert world.earned(world.deployment.usdc) == 0


def test_a_native_session_settles_like_an_asset_session(world: World) -> None:
    deposit = ETHER // 100
    call = world.calls.create_session_native(world.host, MODEL.model_id, Wei(deposit), NATIVE_TERMS)
    job = world.market("nextJobId")
    world.send(call, world.renter)
    world.pass_seconds(10)
    world.claim(job, 1001)
    world.pass_seconds(31)
    before = world.native(world.renter)
    world.complete(job, world.host)
    payment = 1001 * NATIVE_PRICE // 1000
    fee = payment // 10
    assert world.native(world.renter) - before == deposit - payment
    assert world.earned(NATIVE) == payment - fee == world.native(world.deployment.host_earnings)
    assert world.market("accumulatedTreasuryNative") == fee
    earnings = world.native(world.host)
    receipt = world.send(world.calls.withdraw_all_earnings(NATIVE), world.host)
    gas = receipt["gas_used"] * receipt["effective_gas_price"]
    assert world.native(world.host) - earnings == payment - fee - gas


def test_a_session_times_out_after_its_proof_window(world: World) -> None:
    job = world.open()
    world.tester.time_travel(world.session(job)["started"] + 299)
    with refused("Not timeout"):
        world.send(world.calls.trigger_timeout(job), world.stranger)
    world.tester.time_travel(world.session(job)["started"] + 301)
    events = world.events(world.send(world.calls.trigger_timeout(job), world.stranger))
    assert {"SessionTimedOut", "SessionCompleted", "SessionCompletedBy"} <= events.keys()
    session = world.session(job)
    assert (session["status"], session["refund"]) == (2, DEPOSIT)


def test_a_session_times_out_after_its_duration_and_pays_what_was_proven(world: World) -> None:
    job = world.open(terms=replace(TERMS, max_duration_seconds=100))
    world.pass_seconds(50)
    world.claim(job, 2000)
    with refused("Not timeout"):
        world.send(world.calls.trigger_timeout(job), world.stranger)
    world.pass_seconds(51)
    world.send(world.calls.trigger_timeout(job), world.stranger)
    payment = 2000 * STABLE_PRICE // 1000
    assert world.session(job)["host_share"] == payment - payment // 10
