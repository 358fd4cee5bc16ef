"""`fabstir-node demo --json`, as a user runs it: every fact of the issue, and nothing left."""

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.pricing import settle
from nodeapp.core.units import BaseUnits, PricePerToken, Tokens
from nodeapp.devnet.deploy import Rules
from nodeapp.devnet.provision import DEFAULT_STABLE_PRICE
from tests.world import CLI, ROOT, until_nothing_left

pytestmark = pytest.mark.timeout(240)
SECONDS = 200
STEPS = [f"{number}/8 " for number in range(1, 9)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run: its exit code, output and facts."""
    directory = tmp_path_factory.mktemp("demo")
    facts = directory / "facts" / "demo.json"
    run = subprocess.run(
        [*CLI, "demo", "--json", str(facts), "--dir", str(directory / "d")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=SECONDS,
        text=True,
        env={key: value for key, value in os.environ.items() if key not in ("TERM", "DISPLAY")},
    )
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return directory / "d", run, msgspec.json.decode(facts.read_bytes())


def test_every_step_is_told_in_order(demo):
    _directory, run, _facts = demo
    places = [run.stdout.find(step) for step in STEPS]
    assert -1 not in places
    assert places == sorted(places)
    assert "Traceback" not in run.stdout + run.stderr


def test_all_facts_are_there(demo):
    facts = demo[2]
    named = {
        *("answer", "tokens_delivered", "tokens_claimed", "ttft_s", "tokens_per_s", "proofs"),
        *("settlement", "verify", "tamper_detected", "leftover_processes"),
    }
    assert named <= facts.keys()
    assert set(facts["settlement"]) == {"deposit", "host", "treasury", "refund"}
    assert all({"verified", "bytes", "prove_cpu_s"} <= proof.keys() for proof in facts["proofs"])


def test_the_real_model_answered(demo):
    facts = demo[2]
    assert "lighthouse keeper" in facts["answer"]
    assert facts["tokens_delivered"] == 200
    assert 0 < facts["ttft_s"] < 30
    assert facts["tokens_per_s"] > 1
    assert facts["reconnects"] == 0


def test_what_was_delivered_was_claimed_and_proven(demo):
    facts = demo[2]
    assert facts["tokens_claimed"] == facts["tokens_delivered"]
    assert facts["proofs"]
    for proof in facts["proofs"]:
        assert proof["verified"] is True
        assert proof["bytes"] > 1000
        assert proof["prove_cpu_s"] > 0.1


def test_the_money_adds_up_as_the_contract_rounds(demo):
    facts = demo[2]
    parts = facts["settlement"]
    assert parts["host"] + parts["treasury"] + parts["refund"] == parts["deposit"]
    expected = settle(
        BaseUnits(parts["deposit"]),
        Tokens(facts["tokens_claimed"]),
        PricePerToken(DEFAULT_STABLE_PRICE),
        fee_basis_points=Rules().fee_basis_points,
    )
    assert (parts["host"], parts["treasury"], parts["refund"]) == (
        expected.host,
        expected.treasury,
        expected.refund,
    )
    assert facts["withdrawn"] == parts["host"] > 0


def test_every_transaction_is_accounted_for(demo):
    gas = demo[2]["gas"]
    kinds = {name.split("/")[0] for name in gas}
    assert kinds == {"open session (renter)", "claim", "complete", "withdraw"}
    assert len([name for name in gas if name.startswith("claim/")]) == len(demo[2]["proofs"])
    assert all(20_000 < used < 3_000_000 for used in gas.values())


def test_the_renter_verified_and_a_changed_byte_was_refused(demo):
    facts = demo[2]
    assert facts["verify"]["ok"] is True
    checks = set(facts["verify"]["checks"])
    assert {"cid", "signature", "commitment", "ezkl proof", "token count", "settlement"} <= checks
    assert facts["tamper_detected"] is True
    assert facts["tamper_reason"]


def test_nothing_is_left(demo):
    directory, _run, facts = demo
    assert facts["leftover_processes"] == facts["leftover_sockets"] == []
    until_nothing_left(directory, seconds=1)


def test_the_files_kept_hold_no_plain_prompt(demo):
    """Only sealed or signed bytes outlive the node; the renter's own record is the renter's."""
    directory: Path = demo[0]
    for path in (directory / "node").rglob("*"):
        if path.is_file():
            assert b"lighthouse" not in path.read_bytes(), path
