"""A slash takes at most half, once a day, and throws out who keeps too little."""

from __future__ import annotations

import pytest

from tests.contracts.world import DAY_SECONDS, FAB, MODEL, STAKE, World, refused, register


def slash(world: World, amount: int, sender: str | None = None) -> dict[str, object]:
    call = world.calls.slash(world.host, amount, evidence_cid="bevidence", reason="overclaim")
    return world.send(call, sender or world.owner)


def stake(world: World) -> int:
    return world.nodes("nodes", world.host)[1]


def test_the_constants_are_the_live_networks(world: World) -> None:
    assert world.nodes("MAX_SLASH_PERCENTAGE") == 50
    assert world.nodes("MIN_STAKE_AFTER_SLASH") == 100 * FAB
    assert world.nodes("SLASH_COOLDOWN") == DAY_SECONDS
    assert world.nodes("slashingAuthority").lower() == world.owner.lower()


def test_a_slash_moves_stake_to_the_treasury(world: World) -> None:
    held = world.fab(world.treasury)
    event = world.events(slash(world, 200 * FAB), "NodeRegistry")["SlashExecuted"]
    assert (event["amount"], event["remainingStake"]) == (200 * FAB, 800 * FAB)
    assert (event["evidenceCID"], event["reason"]) == ("bevidence", "overclaim")
    assert event["timestamp"] == world.now() == world.nodes("lastSlashTime", world.host)
    assert stake(world) == STAKE - 200 * FAB == world.fab(world.deployment.node_registry)
    assert world.fab(world.treasury) - held == 200 * FAB
    assert world.nodes("isActiveNode", world.host) is True


def test_at_most_half_of_the_stake_at_once(world: World) -> None:
    with refused("Amount exceeds maximum"):
        slash(world, STAKE // 2 + 1)
    with refused("Zero amount"):
        slash(world, 0)
    slash(world, STAKE // 2)
    assert stake(world) == STAKE // 2


def test_at_most_once_a_day(world: World) -> None:
    slash(world, FAB)
    slashed = world.now()
    world.tester.time_travel(slashed + DAY_SECONDS - 1)
    with refused("Slash cooldown active"):
        slash(world, FAB)
    world.tester.time_travel(slashed + DAY_SECONDS + 10)
    slash(world, FAB)
    assert stake(world) == STAKE - 2 * FAB


def test_who_keeps_less_than_100_fab_is_unregistered_and_gets_the_rest(world: World) -> None:
    job = world.open()
    held, treasury = world.fab(world.host), world.fab(world.treasury)
    for amount in (500, 250, 125, 25):
        receipt = slash(world, amount * FAB)
        assert "HostAutoUnregistered" not in world.events(receipt, "NodeRegistry")
        world.pass_seconds(DAY_SECONDS)
    assert stake(world) == 100 * FAB
    out = world.events(slash(world, 1), "NodeRegistry")["HostAutoUnregistered"]
    assert (out["slashedAmount"], out["returnedAmount"]) == (1, 100 * FAB - 1)
    assert out["reason"] == "overclaim"
    assert world.fab(world.host) - held == 100 * FAB - 1
    assert world.fab(world.treasury) - treasury == 900 * FAB + 1
    assert world.fab(world.deployment.node_registry) == 0
    assert world.nodes("isActiveNode", world.host) is False
    assert world.nodes("getAllActiveNodes") == ()
    assert world.nodes("getNodesForModel", bytes.fromhex(MODEL.model_id[2:])) == ()
    with refused("Host not active"):
        slash(world, 1)
    # Its sessions take no claim any more, and still end.
    with refused("Host not active"):
        world.claim(job, 1000)
    with refused("Host not active"):
        world.open()
    world.complete(job, world.host)
    world.send(register(world), world.host)
    assert stake(world) == STAKE


def test_only_the_authority_slashes_and_the_owner_names_it(world: World) -> None:
    for sender in (world.host, world.renter, world.treasury):
        with refused("Not slashing authority"):
            slash(world, FAB, sender)
    name = world.call(
        world.deployment.node_registry, "NodeRegistry", "setSlashingAuthority", world.stranger
    )
    with refused("Not owner"):
        world.send(name, world.stranger)
    world.send(name, world.owner)
    with refused("Not slashing authority"):
        slash(world, FAB)
    slash(world, FAB, world.stranger)


@pytest.mark.parametrize(
    ("evidence", "reason", "told"),
    [("", "overclaim", "Evidence CID required"), ("bevidence", "", "Reason required")],
)
def test_a_slash_gives_evidence_and_a_reason(
    world: World, evidence: str, reason: str, told: str
) -> None:
    call = world.calls.slash(world.host, FAB, evidence_cid=evidence, reason=reason)
    with refused(told):
        world.send(call, world.owner)
