"""JobMarketplace: its constants, and what owner and treasury may change."""

from __future__ import annotations

from nodeapp.core.units import Wei
from nodeapp.evm.calls import mint
from tests.contracts.world import (
    DEPOSIT,
    ETHER,
    MODEL,
    STABLE_PRICE,
    TERMS,
    World,
    refused,
)


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


def test_a_balance_can_be_withdrawn_while_paused(world: World) -> None:
    world.send(world.calls.deposit_native(Wei(ETHER)), world.renter)
    world.send(world.calls.pause(), world.treasury)
    world.send(world.calls.withdraw_native(Wei(ETHER)), world.renter)
    assert world.native(world.deployment.marketplace) == 0


def test_the_minimum_fee_is_the_owners_to_set(world: World) -> None:
    with refused("Not owner"):
        world.send(world.market_call("setMinTokensFee", 0), world.renter)
    with refused("Fee too high"):
        world.send(world.market_call("setMinTokensFee", 10_001), world.owner)
    world.send(world.market_call("setMinTokensFee", 0), world.owner)
    job = world.open()
    world.complete(job, world.renter)
    assert world.session(job)["refund"] == DEPOSIT


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
