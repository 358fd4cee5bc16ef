"""JobMarketplace: what opens a session, from the wallet or from a balance, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeapp.core.units import Wei
from nodeapp.evm.calls import NATIVE
from tests.contracts.world import (
    DEPOSIT,
    ETHER,
    MODEL,
    NATIVE_TERMS,
    OTHER_MODEL,
    STABLE_PRICE,
    TERMS,
    World,
    refused,
)


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
