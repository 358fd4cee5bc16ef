"""JobMarketplace: which claims of a host are taken, and when."""

from __future__ import annotations

from dataclasses import replace

from tests.contracts.world import (
    MODEL,
    STABLE_PRICE,
    TERMS,
    World,
    refused,
)


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
