"""A delegate spends its owner's money within limits, and can do nothing else with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeapp.evm.calls import NATIVE, UNLIMITED, approve, mint
from tests.contracts.calls import DelegateLimits
from tests.contracts.world import (
    DEPOSIT,
    MODEL,
    OTHER_MODEL,
    STABLE_PRICE,
    TERMS,
    World,
    refused,
)

NO_LIMITS = DelegateLimits()


def configure(world: World, limits: DelegateLimits = NO_LIMITS) -> None:
    world.send(world.calls.configure_delegate(world.stranger, limits), world.renter)


def open_as_delegate(world: World, **changes: object) -> int:
    job = world.market("nextJobId")
    fields: dict[str, object] = {
        "payer": world.renter,
        "host": world.host,
        "model_id": MODEL.model_id,
        "asset": world.deployment.usdc,
        "deposit": DEPOSIT,
        "terms": TERMS,
    }
    sender = changes.pop("sender", world.stranger)
    fields.update(changes)
    world.send(world.calls.create_session_as_delegate(**fields), sender)
    return job


def test_the_session_belongs_to_the_payer_and_is_paid_from_its_wallet(world: World) -> None:
    configure(world)
    payers, delegates = world.usdc(world.renter), world.usdc(world.stranger)
    job = open_as_delegate(world)
    session = world.session(job)
    assert session["depositor"].lower() == world.renter.lower()
    assert session["deposit"] == payers - world.usdc(world.renter) == DEPOSIT
    assert world.usdc(world.stranger) == delegates
    assert world.market("userSessions", world.renter, 0) == job
    # The delegate neither settles nor receives.
    world.pass_seconds(100)
    with refused("Not depositor or host"):
        world.complete(job, world.stranger)
    world.complete(job, world.renter)
    fee = 100 * STABLE_PRICE // 1000
    assert world.usdc(world.renter) == payers - fee
    assert world.usdc(world.stranger) == delegates


def test_creation_by_a_delegate_is_told_by_three_events(world: World) -> None:
    configure(world)
    call = world.calls.create_session_as_delegate(
        world.renter,
        world.host,
        MODEL.model_id,
        asset=world.deployment.usdc,
        deposit=DEPOSIT,
        terms=TERMS,
    )
    events = world.events(world.send(call, world.stranger))
    assert events.keys() >= {"SessionJobCreated", "SessionJobCreatedForModel"}
    told = events["SessionCreatedByDelegate"]
    assert (told["payer"].lower(), told["delegate"].lower()) == (
        world.renter.lower(),
        world.stranger.lower(),
    )
    assert told["amount"] == DEPOSIT


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_per_session": DEPOSIT - 1}, "Over limit"),
        ({"total_cap": DEPOSIT - 1}, "Over cap"),
        ({"valid_until": 1}, "Expired"),
        ({"host": "other"}, "Wrong host"),
        ({"model_id": OTHER_MODEL.model_id}, "Wrong model"),
    ],
)
def test_limits_hold(world: World, limits: dict[str, object], reason: str) -> None:
    if "host" in limits:
        limits = {"host": world.owner}
    configure(world, DelegateLimits(**limits))
    with refused(reason):
        open_as_delegate(world)


def test_what_was_spent_counts_until_the_limits_are_set_again(world: World) -> None:
    limits = DelegateLimits(max_per_session=DEPOSIT, total_cap=2 * DEPOSIT, host=world.host)
    configure(world, limits)
    open_as_delegate(world)
    open_as_delegate(world)
    with refused("Over cap"):
        open_as_delegate(world, deposit=500_000)
    config = world.market("delegateConfigs", world.renter, world.stranger)
    assert config[:5] == (DEPOSIT, 2 * DEPOSIT, 2 * DEPOSIT, 0, True)
    configure(world, limits)
    open_as_delegate(world)


def test_a_delegate_can_be_switched_off_and_on(world: World) -> None:
    with refused("Not delegate"):
        open_as_delegate(world)
    configure(world, DelegateLimits(total_cap=DEPOSIT, valid_until=1))
    for authorized in (False, True):
        call = world.calls.authorize_delegate(world.stranger, authorized=authorized)
        world.send(call, world.renter)
        state = world.market("isDelegateAuthorized", world.renter, world.stranger)
        assert state is authorized
    # Switched on again it has no expiry, and still its cap.
    open_as_delegate(world)
    with refused("Over cap"):
        open_as_delegate(world)
    world.send(world.calls.authorize_delegate(world.stranger, authorized=False), world.renter)
    with refused("Not delegate"):
        open_as_delegate(world)


def test_nobody_is_its_own_delegate_but_may_pay_itself(world: World) -> None:
    with refused("Self deleg"):
        world.send(world.calls.configure_delegate(world.renter, DelegateLimits()), world.renter)
    with refused("Zero addr"):
        world.send(world.calls.authorize_delegate(NATIVE, authorized=True), world.renter)
    assert world.session(open_as_delegate(world, sender=world.renter))["deposit"] == DEPOSIT


def test_only_assets_and_real_payers(world: World) -> None:
    configure(world)
    with refused("ERC20 only"):
        open_as_delegate(world, asset=NATIVE)
    with refused("No payer"):
        open_as_delegate(world, payer=NATIVE)
    with refused("Bad token"):
        open_as_delegate(world, asset=world.deployment.fab)
    with refused("Low price"):
        open_as_delegate(world, terms=replace(TERMS, price_per_token=STABLE_PRICE - 1))


def test_the_payers_allowance_is_what_counts(world: World) -> None:
    usdc, market = world.deployment.usdc, world.deployment.marketplace
    configure(world)
    # The delegate's own funds do not help.
    world.send(mint(usdc, world.stranger, DEPOSIT), world.stranger)
    world.send(approve(usdc, market, UNLIMITED), world.stranger)
    world.send(approve(usdc, market, DEPOSIT - 1), world.renter)
    with refused("Insufficient allowance"):
        open_as_delegate(world)


def test_a_delegate_opens_nothing_while_paused(world: World) -> None:
    configure(world)
    world.send(world.calls.pause(), world.owner)
    with refused("Paused"):
        open_as_delegate(world)
