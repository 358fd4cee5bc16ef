"""Nothing is made or lost: host share + treasury + refund == deposit, for any session."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeapp.core.pricing import affordable_tokens, settle
from tests.contracts.world import STABLE_PRICE, TERMS, World

ENDS = ("renter", "host", "timeout")


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    deposit=st.integers(500_000, 20_000_000),
    price=st.integers(STABLE_PRICE, 300_003),
    shares=st.lists(st.integers(1, 1000), max_size=3),
    end=st.sampled_from(ENDS),
)
def test_every_split_adds_up_to_the_deposit(
    world: World, deposit: int, price: int, shares: list[int], end: str
) -> None:
    before = world.tester.take_snapshot()
    usdc = world.deployment.usdc
    paid = world.usdc(world.renter)
    terms = replace(TERMS, price_per_token=price, proof_interval=100)
    job = world.open(deposit=deposit, terms=terms)
    left = covered = affordable_tokens(deposit, price)
    for number, share in enumerate(shares):
        tokens = max(100, covered * share // 1000)
        if tokens > left:
            continue
        world.pass_seconds(tokens // 2000 + 1)
        if world.now() - world.session(job)["started"] > 200:
            break
        world.claim(job, tokens, number=number)
        left -= tokens
    match end:
        case "renter":
            world.complete(job, world.renter)
        case "host":
            world.pass_seconds(31)
            world.complete(job, world.host)
        case _:
            world.pass_seconds(3601)
            world.send(world.calls.trigger_timeout(job), world.stranger)
    session = world.session(job)
    if session["used"]:
        split = settle(deposit, session["used"], price, fee_basis_points=1000)
        assert (split.host, split.refund) == (session["host_share"], session["refund"])
    treasury = world.market("accumulatedTreasuryTokens", usdc)
    assert session["host_share"] + treasury + session["refund"] == deposit
    assert world.earned(usdc) == session["host_share"]
    assert world.usdc(world.renter) == paid - deposit + session["refund"]
    assert world.usdc(world.deployment.marketplace) == treasury
    assert world.usdc(world.deployment.host_earnings) == session["host_share"]
    world.tester.revert_to_snapshot(before)
