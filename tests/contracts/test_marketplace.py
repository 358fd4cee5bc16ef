"""JobMarketplace, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeapp.core.units import Wei
from nodeapp.evm.calls import NATIVE, mint
from tests.contracts.world import (
    DEPOSIT,
    MODEL,
    NATIVE_PRICE,
    OTHER_MODEL,
    STABLE_PRICE,
    TERMS,
    World,
    refused,
)

ETHER = 10**18
NATIVE_TERMS = replace(TERMS, price_per_token=NATIVE_PRICE)


def test_the_constants_are_the_live_networks(world: World) -> None:
    assert world.market("MIN_DEPOSIT") == 10**14
    assert world.market("MIN_PROVEN_TOKENS") == 100
    assert world.market("PRICE_PRECISION") == 1000
    assert world.market("MIN_PROOF_TIMEOUT") == 60
    assert world.market("MAX_PROOF_TIMEOUT") == 3600
    assert world.market("DEFAULT_PROOF_TIMEOUT") == 300
    assert world.market("feeBasisPoints") == 1000
    assert world.market("disputeWindow") == 30
    assert world.market("tokenMinDeposits", world.deployment.usdc) == 500_000
    assert world.market("tokenMaxDeposits", world.deployment.usdc) == 10**12
    assert world.market("treasuryAddress").lower() == world.treasury.lower()


# --- creation ------------------------------------------------------------------


def test_a_session_is_created_with_the_terms_asked_for(world: World) -> None:
    paid = world.usdc(world.renter)
    job = world.open()
    session = world.session(job)
    assert (session["id"], session["status"], session["used"]) == (job, 0, 0)
    assert session["depositor"].lower() == world.renter.lower()
    assert session["host"].lower() == world.host.lower()
    assert session["asset"].lower() == world.deployment.usdc.lower()
    assert (session["deposit"], session["price"]) == (DEPOSIT, STABLE_PRICE)
    assert (session["duration"], session["interval"], session["window"]) == (3600, 1000, 300)
    assert session["started"] == session["proved"] == world.now()
    assert world.market("sessionModel", job).hex() == MODEL.model_id[2:]
    assert world.market("userSessions", world.renter, 0) == job
    assert world.market("hostSessions", world.host, 0) == job
    assert paid - world.usdc(world.renter) == DEPOSIT


def test_creation_tells_renter_and_host_by_event(world: World) -> None:
    usdc = world.deployment.usdc
    receipt = world.send(
        world.calls.create_session(world.host, MODEL.model_id, usdc, DEPOSIT, TERMS), world.renter
    )
    events = world.events(receipt)
    assert events["SessionJobCreated"]["deposit"] == DEPOSIT
    created = events["SessionJobCreatedForModel"]
    assert created["modelId"].hex() == MODEL.model_id[2:]
    assert created["host"].lower() == world.host.lower()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"price_per_token": STABLE_PRICE - 1}, "Low price"),
        ({"max_duration_seconds": 0}, "Bad dur"),
        ({"max_duration_seconds": 365 * 86_400 + 1}, "Bad dur"),
        ({"proof_interval": 99}, "Low interval"),
        ({"proof_timeout_seconds": 59}, "Bad timeout"),
        ({"proof_timeout_seconds": 3601}, "Bad timeout"),
        ({"proof_interval": DEPOSIT * 1000 // STABLE_PRICE + 1}, "Low deposit"),
    ],
)
def test_terms_outside_the_bounds_are_refused(
    world: World, change: dict[str, int], reason: str
) -> None:
    with refused(reason):
        world.open(terms=replace(TERMS, **change))


def test_terms_at_the_bounds_are_accepted(world: World) -> None:
    world.open(terms=replace(TERMS, max_duration_seconds=365 * 86_400, proof_interval=100))
    world.open(terms=replace(TERMS, proof_timeout_seconds=60, max_duration_seconds=1))
    world.open(terms=replace(TERMS, proof_interval=DEPOSIT * 1000 // STABLE_PRICE))


def test_a_usdc_deposit_has_a_floor_and_a_ceiling(world: World) -> None:
    with refused("Low deposit"):
        world.open(deposit=499_999, terms=replace(TERMS, proof_interval=100))
    with refused("Over max"):
        world.open(deposit=10**12 + 1)


def test_a_native_deposit_has_a_floor_and_a_ceiling(world: World) -> None:
    def create(deposit: int) -> None:
        call = world.calls.create_session_native(
            world.host, MODEL.model_id, Wei(deposit), NATIVE_TERMS
        )
        world.send(call, world.renter)

    with refused("Low deposit"):
        create(10**14 - 1)
    with refused("Over max"):
        create(1000 * ETHER + 1)
    create(ETHER)


def test_an_asset_that_is_not_accepted_is_refused(world: World) -> None:
    call = world.calls.create_session(
        world.host, MODEL.model_id, world.deployment.fab, ETHER, TERMS
    )
    with refused("Bad token"):
        world.send(call, world.renter)
    native = world.calls.create_session(world.host, MODEL.model_id, NATIVE, ETHER, NATIVE_TERMS)
    with refused("Bad token"):
        world.send(native, world.renter)


def test_a_session_needs_a_model_the_host_sells(world: World) -> None:
    usdc = world.deployment.usdc

    def create(model_id: str, host: str = world.host) -> None:
        world.send(world.calls.create_session(host, model_id, usdc, DEPOSIT, TERMS), world.renter)

    with refused("Bad model"):
        create("0x" + "00" * 32)
    with refused("Bad model"):
        create("0x" + "77" * 32)
    with refused("No model"):
        create(OTHER_MODEL.model_id)
    with refused("Host not active"):
        create(MODEL.model_id, world.stranger)


def test_a_session_needs_a_price_for_model_and_asset(world: World) -> None:
    usdc = world.deployment.usdc
    world.send(world.calls.clear_model_price(MODEL.model_id, usdc), world.host)
    with refused("No model pricing"):
        world.open()


def test_a_deactivated_model_opens_no_session(world: World) -> None:
    registry = world.deployment.model_registry
    model = bytes.fromhex(MODEL.model_id[2:])
    world.send(world.call(registry, "ModelRegistry", "deactivateModel", model), world.owner)
    with refused("Bad model"):
        world.open()
    world.send(world.call(registry, "ModelRegistry", "reactivateModel", model), world.owner)
    world.open()


def test_a_renter_without_funds_is_refused(world: World) -> None:
    usdc = world.deployment.usdc
    call = world.calls.create_session(world.host, MODEL.model_id, usdc, DEPOSIT, TERMS)
    with refused("Insufficient allowance"):
        world.send(call, world.stranger)


# --- pre-deposits ----------------------------------------------------------------


def test_a_native_balance_is_deposited_used_and_withdrawn(world: World) -> None:
    world.send(world.calls.deposit_native(Wei(3 * ETHER)), world.renter)
    call = world.calls.create_session_from_deposit(
        world.host, MODEL.model_id, NATIVE, ETHER, NATIVE_TERMS
    )
    receipt = world.send(call, world.renter)
    assert world.events(receipt)["SessionCreatedByDepositor"]["deposit"] == ETHER
    assert world.market("userDepositsNative", world.renter) == 2 * ETHER
    with refused("Low balance"):
        world.send(world.calls.withdraw_native(Wei(2 * ETHER + 1)), world.renter)
    receipt = world.send(world.calls.withdraw_native(Wei(2 * ETHER)), world.renter)
    assert world.events(receipt)["WithdrawalProcessed"]["amount"] == 2 * ETHER
    assert world.market("userDepositsNative", world.renter) == 0
    assert world.native(world.deployment.marketplace) == ETHER


def test_a_usdc_balance_is_deposited_used_and_withdrawn(world: World) -> None:
    usdc = world.deployment.usdc
    receipt = world.send(world.calls.deposit_asset(usdc, 3 * DEPOSIT), world.renter)
    assert world.events(receipt)["DepositReceived"]["amount"] == 3 * DEPOSIT
    call = world.calls.create_session_from_deposit(world.host, MODEL.model_id, usdc, DEPOSIT, TERMS)
    world.send(call, world.renter)
    world.send(world.calls.withdraw_asset(usdc, 2 * DEPOSIT), world.renter)
    assert world.market("userDepositsToken", world.renter, usdc) == 0
    with refused("Low balance"):
        world.send(call, world.renter)


def test_nobody_withdraws_anothers_balance(world: World) -> None:
    world.send(world.calls.deposit_native(Wei(ETHER)), world.renter)
    with refused("Low balance"):
        world.send(world.calls.withdraw_native(Wei(1)), world.stranger)


# --- claims ------------------------------------------------------------------------


def test_a_claim_is_a_delta_and_is_recorded(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    world.claim(job, 1000, number=1)
    world.pass_seconds(10)
    world.claim(job, 100, number=2)
    session = world.session(job)
    assert session["used"] == 1100
    assert session["proved"] == world.now()
    assert session["proof_cid"] == "proof"
    proof_hash, tokens, timestamp, verified, delta = world.market("getProofSubmission", job, 1)
    assert (tokens, timestamp, verified, delta) == (100, world.now(), True, "delta")
    assert proof_hash == session["proof_hash"] == (job * 1000 + 2).to_bytes(32, "big")
    proof_system = world.deployment.proof_system
    assert world.read(proof_system, "ProofSystem", "verifiedProofs", proof_hash) is True
    with refused("Bad index"):
        world.market("getProofSubmission", job, 2)


def test_a_claim_is_told_by_event(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    call = world.calls.submit_proof(job, 1000, b"\x01" * 32, proof_cid="b" * 59, delta_cid="c" * 59)
    event = world.events(world.send(call, world.host))["ProofSubmitted"]
    assert (event["jobId"], event["tokensClaimed"], event["proofHash"]) == (
        job,
        1000,
        b"\x01" * 32,
    )
    assert (event["proofCID"], event["deltaCID"]) == ("b" * 59, "c" * 59)


def test_only_the_host_claims(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    for sender in (world.renter, world.stranger, world.owner):
        with refused("Not host"):
            world.claim(job, 1000, sender=sender)


def test_an_unregistered_host_cannot_claim(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    world.send(world.calls.unregister_node(), world.host)
    with refused("Host not active"):
        world.claim(job, 1000)


def test_a_claim_below_100_tokens_is_refused(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    with refused("Min tokens"):
        world.claim(job, 99)


def test_the_first_claim_covers_one_interval_and_later_ones_need_not(world: World) -> None:
    job = world.open()
    world.pass_seconds(10)
    with refused("Low first"):
        world.claim(job, 999)
    world.claim(job, 1000, number=1)
    world.pass_seconds(10)
    world.claim(job, 100, number=2)


def test_claims_are_limited_by_time_since_the_last_one(world: World) -> None:
    job = world.open(terms=replace(TERMS, proof_interval=100))
    world.tester.time_travel(world.session(job)["started"] + 3)
    with refused("Too many"):
        world.claim(job, 3 * 2000 + 1)
    # The refused transaction was mined in a block of its own, so that time has passed since.
    elapsed = world.now() + 1 - world.session(job)["started"]
    world.tester.time_travel(world.now() + 1)
    world.claim(job, elapsed * 2000)


def test_the_rate_limit_is_the_models_own(world: World) -> None:
    registry = world.deployment.model_registry
    model = bytes.fromhex(MODEL.model_id[2:])
    world.send(world.call(registry, "ModelRegistry", "setModelRateLimit", model, 10), world.owner)
    job = world.open(terms=replace(TERMS, proof_interval=100))
    world.pass_seconds(9)
    with refused("Too many"):
        world.claim(job, 1000)
    world.pass_seconds(100)
    world.claim(job, 1000)


def test_claims_never_exceed_the_deposit(world: World) -> None:
    deposit = 500_000
    covered = deposit * 1000 // STABLE_PRICE
    job = world.open(deposit=deposit, terms=replace(TERMS, proof_timeout_seconds=3600))
    world.pass_seconds(600)
    with refused("Over dep"):
        world.claim(job, covered + 1)
    world.claim(job, covered - 100, number=2)
    world.pass_seconds(10)
    with refused("Over dep"):
        world.claim(job, 101, number=3)
    world.claim(job, 100, number=4)
    assert world.session(job)["used"] == covered


def test_a_proof_hash_is_used_once_on_the_whole_chain(world: World) -> None:
    first, second = world.open(), world.open()
    world.pass_seconds(10)
    used = world.calls.submit_proof(first, 1000, b"\x05" * 32, proof_cid="a", delta_cid="b")
    world.send(used, world.host)
    world.pass_seconds(10)
    for job in (first, second):
        again = world.calls.submit_proof(job, 1000, b"\x05" * 32, proof_cid="a", delta_cid="b")
        with refused("Proof already used"):
            world.send(again, world.host)
    empty = world.calls.submit_proof(second, 1000, bytes(32), proof_cid="a", delta_cid="b")
    with refused("Proof already used"):
        world.send(empty, world.host)


def test_an_unknown_or_ended_session_takes_no_claim(world: World) -> None:
    with refused("Not active"):
        world.claim(999, 1000)
    job = world.open()
    world.complete(job, world.renter)
    world.pass_seconds(10)
    with refused("Not active"):
        world.claim(job, 1000)


# --- completion and settlement --------------------------------------------------------


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


def test_a_balance_can_be_withdrawn_while_paused(world: World) -> None:
    world.send(world.calls.deposit_native(Wei(ETHER)), world.renter)
    world.send(world.calls.pause(), world.treasury)
    world.send(world.calls.withdraw_native(Wei(ETHER)), world.renter)
    assert world.native(world.deployment.marketplace) == 0


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


def test_the_minimum_fee_is_the_owners_to_set(world: World) -> None:
    with refused("Not owner"):
        world.send(world.market_call("setMinTokensFee", 0), world.renter)
    with refused("Fee too high"):
        world.send(world.market_call("setMinTokensFee", 10_001), world.owner)
    world.send(world.market_call("setMinTokensFee", 0), world.owner)
    job = world.open()
    world.complete(job, world.renter)
    assert world.session(job)["refund"] == DEPOSIT


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


# --- timeout --------------------------------------------------------------------------


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


# --- pause and treasury -----------------------------------------------------------------


def test_pause_stops_creation_and_proofs_but_not_the_end(world: World) -> None:
    first, second = world.open(), world.open()
    world.pass_seconds(10)
    with refused("Not admin"):
        world.send(world.market_call("pause"), world.renter)
    world.send(world.market_call("pause"), world.owner)
    assert world.market("paused") is True
    with refused("Paused"):
        world.open()
    with refused("Paused"):
        world.claim(first, 1000)
    with refused("Paused"):
        world.send(world.calls.deposit_native(Wei(1)), world.renter)
    with refused("Paused"):
        world.send(world.calls.deposit_asset(world.deployment.usdc, 1), world.renter)
    world.complete(first, world.renter)
    world.pass_seconds(400)
    world.send(world.calls.trigger_timeout(second), world.stranger)
    world.send(world.market_call("unpause"), world.owner)
    world.open()


def test_only_the_treasury_withdraws_fees(world: World) -> None:
    usdc = world.deployment.usdc
    job = world.open()
    world.pass_seconds(10)
    world.claim(job, 1000)
    world.complete(job, world.renter)
    for sender in (world.owner, world.host):
        with refused("Only treasury"):
            world.send(world.market_call("withdrawTreasuryTokens", usdc), sender)
    world.send(world.market_call("withdrawTreasuryTokens", usdc), world.treasury)
    assert world.usdc(world.treasury) == 200
    assert world.usdc(world.deployment.marketplace) == 0
    with refused("Zero amount"):
        world.send(world.market_call("withdrawTreasuryTokens", usdc), world.treasury)


def test_a_further_asset_can_be_accepted(world: World) -> None:
    fab = world.deployment.fab
    with refused("Not admin"):
        world.send(world.market_call("addAcceptedToken", fab, 1, 10), world.renter)
    world.send(world.market_call("addAcceptedToken", fab, 1, 10 * ETHER), world.owner)
    world.send(world.calls.set_model_price(MODEL.model_id, fab, STABLE_PRICE), world.host)
    world.send(mint(fab, world.renter, ETHER), world.renter)
    with refused("Insufficient allowance"):
        world.send(
            world.calls.create_session(world.host, MODEL.model_id, fab, ETHER, TERMS), world.renter
        )


def test_the_bounds_of_a_deposit_may_change_while_sessions_run(world: World) -> None:
    usdc, before = world.deployment.usdc, world.open()
    lower = world.market_call("updateTokenMinDeposit", usdc, DEPOSIT + 1)
    upper = world.market_call("updateTokenMaxDeposit", usdc, DEPOSIT + 2)
    with refused("Not admin"):
        world.send(lower, world.renter)
    world.send(lower, world.treasury)
    events = world.events(world.send(upper, world.owner))
    assert events["TokenMaxDepositUpdated"]["oldMaxDeposit"] == 10**12
    with refused("Low deposit"):
        world.open()
    with refused("Over max"):
        world.open(deposit=DEPOSIT + 3)
    world.open(deposit=DEPOSIT + 1)
    with refused("Max < min"):
        world.send(world.market_call("updateTokenMaxDeposit", usdc, DEPOSIT + 1), world.owner)
    with refused("Bad token"):
        world.send(world.market_call("updateTokenMinDeposit", world.deployment.fab, 1), world.owner)
    world.complete(before, world.renter)
    assert world.session(before)["status"] == 1
