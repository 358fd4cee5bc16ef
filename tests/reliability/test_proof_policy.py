"""A prover that never comes back: what the host's policy says about the money."""

import os
import signal
import threading
from collections.abc import Iterator

import psutil
import pytest

from nodeapp.renter.events import AnswerEnded
from tests.world import World, as_toml, last_line, started_devnet, until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
TOKENS = 120


@pytest.fixture(scope="module")
def lenient_world(tmp_path_factory) -> Iterator[World]:
    """A host that claims without a proof after five seconds."""
    with started_devnet(tmp_path_factory.mktemp("w")) as world:
        values = world.node_values
        values["chain"] |= {"proof": "best_effort", "proof_patience_seconds": 5.0}
        world.node_file.write_text(as_toml(values))
        world.start_node().until_said("node ready", 90)
        yield world


class Killer(threading.Thread):
    """Kills the prover whenever it is there."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world, self.done, self.kills = world, threading.Event(), 0

    def run(self) -> None:
        while not self.done.wait(0.1):
            try:
                os.kill(self.world.pid("prover"), signal.SIGKILL)
            except (AssertionError, ProcessLookupError, psutil.Error):
                continue
            self.kills += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exit):
        self.done.set()
        self.join(10)


def chat(world: World, name: str, **settings: object):
    renter = world.renter(name, **settings)
    asked = renter.chat("Name many colours.", "--max-tokens", TOKENS, name=name)
    assert asked.finish(120) == 0, asked.err
    return renter, asked.one(AnswerEnded).job_id


def test_a_host_is_paid_although_its_prover_dies_again_and_again(lenient_world: World):
    world = lenient_world
    with Killer(world) as killer:
        renter, job_id = chat(world, "unproven")
        job = world.until_settled(job_id, 120)
    assert killer.kills > 0
    assert job.tokens_used == len(renter.record(job_id).token_ids)
    assert job.host_share + job.treasury_share + job.refund == job.deposit
    (claim,) = world.detail(job_id).claims
    assert (claim.mined, claim.proofs) == (True, 0)
    verify = renter.command("verify", "--job", job_id)
    assert verify.finish() == 0, verify.out + verify.err
    assert "NO PROOF     receipt only, the host says: prover_unavailable" in verify.out
    assert last_line(verify.out).endswith(
        "verified, 1 by your receipts only (the host gave no proof)"
    )


def test_the_next_claim_is_proven_when_the_prover_is_back(lenient_world: World):
    world = lenient_world
    until(lambda: world.status()["prover"].ready, "prover ready", 120)
    renter, job_id = chat(world, "proven")
    world.until_settled(job_id, 120)
    (claim,) = world.detail(job_id).claims
    assert claim.proofs == 1
    verify = renter.command("verify", "--job", job_id)
    assert verify.finish() == 0, verify.out + verify.err
    assert last_line(verify.out).endswith("received: verified")


def test_a_renter_that_requires_proofs_does_not_rent_there(lenient_world: World):
    renter = lenient_world.renter("choosy", require_proofs=True)
    asked = renter.chat("Name many colours.", "--max-tokens", TOKENS)
    assert asked.finish(60) == 1
    assert "claims rest on 'ledger or receipt', and require_proofs is set" in last_line(asked.err)
