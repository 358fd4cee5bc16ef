"""Real EZKL proofs through nodeapp/rpc/proof_worker.py and nodeapp/prover/worker.py."""

import shutil
from dataclasses import replace as dataclass_replace

import msgspec
import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.core.ledger_proof import chunk_ids, context_limbs, following, ledger_vector
from nodeapp.prover.worker import ProofInvalid, read_ezkl_proof, write_ezkl_proof
from nodeapp.rpc.proof_worker import (
    WorkerSettings,
    ledger_commitments,
    read_profile,
    run_worker,
    verify_ledger,
    verify_proofs,
)
from nodeapp.wire import prover_job
from nodeapp.wire.proof_envelope import ProofEnvelope
from nodeapp.wire.proof_profile import PROOF_BYTES
from tests.proofs.ledger_case import CONTEXT, SALT, TOKEN_IDS, VECTOR


def altered(shown, **change):
    return msgspec.structs.replace(shown, **change)


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


async def refusal(directory, shown) -> str:
    outcome = await verify_proofs(directory, [shown], allow_test_srs=True)
    assert not outcome.ok
    return outcome.reason


async def test_a_proof_shows_count_place_and_commitment_and_verifies(made):
    assert made.shown.count == len(TOKEN_IDS)
    assert made.shown.context_limbs == context_limbs(CONTEXT)
    assert (made.shown.commitment,) == await ledger_commitments(made.directory, [VECTOR])
    assert len(made.shown.proof) in PROOF_BYTES.values()
    outcome = await verify_proofs(made.directory, [made.shown], allow_test_srs=True)
    assert outcome.ok, outcome.reason
    assert made.spent.cpu_seconds > 0
    assert made.spent.peak_megabytes < 1500


@pytest.mark.parametrize("position", [0, 63, 64, 1000, 2500, -1])
async def test_one_flipped_byte_of_the_proof_is_refused_with_a_reason(made, position):
    reason = await refusal(
        made.directory, altered(made.shown, proof=flipped(made.shown.proof, position))
    )
    assert "halo2" in reason or "commitment is not the one" in reason


async def test_other_numbers_than_were_proven_are_refused(made):
    limbs = made.shown.context_limbs
    for change in (
        {"count": made.shown.count + 1},
        {"context_limbs": (limbs[0] ^ 1, *limbs[1:])},
        {"commitment": flipped(made.shown.commitment, 0)},
    ):
        assert await refusal(made.directory, altered(made.shown, **change))


async def test_a_commitment_that_is_no_field_element_is_the_provers_fault(poseidon_proof):
    reason = await refusal(
        poseidon_proof.directory, altered(poseidon_proof.shown, commitment=b"\xff" * 32)
    )
    assert "field element" in reason


async def test_trailing_or_missing_bytes_are_refused(made):
    # EZKL itself accepts trailing bytes: one proof would have many hashes.
    for proof in (made.shown.proof + b"\0", made.shown.proof[:-1], b""):
        assert "bytes" in await refusal(made.directory, altered(made.shown, proof=proof))


async def test_the_second_of_two_proofs_is_named_when_it_is_bad(kzg_proof):
    bad = altered(kzg_proof.shown, count=1)
    outcome = await verify_proofs(kzg_proof.directory, [kzg_proof.shown, bad], allow_test_srs=True)
    assert not outcome.ok
    assert outcome.reason.startswith("proof 1:")


async def test_a_kzg_proof_is_bound_to_its_commitment(kzg_proof):
    # `ezkl.verify` compares this commitment with nothing.
    other = ledger_vector(TOKEN_IDS[::-1], context_limbs(CONTEXT), SALT)
    (commitment,) = await ledger_commitments(kzg_proof.directory, [other])
    reason = await refusal(kzg_proof.directory, altered(kzg_proof.shown, commitment=commitment))
    assert "commitment is not the one inside the proof" in reason


async def test_a_test_reference_string_is_refused_unless_allowed(kzg_proof):
    outcome = await verify_proofs(kzg_proof.directory, [kzg_proof.shown], allow_test_srs=False)
    assert not outcome.ok
    assert "test" in outcome.reason


async def test_a_proof_of_the_other_profile_is_refused(kzg_proof, poseidon_profile):
    assert "bytes" in await refusal(poseidon_profile, kzg_proof.shown)


@pytest.mark.parametrize("name", ["vk", "srs", "settings.json", "profile.json"])
async def test_a_damaged_profile_is_our_fault_not_the_proofs(kzg_proof, tmp_path, name):
    copy = tmp_path / "profile"
    shutil.copytree(kzg_proof.directory, copy)
    (copy / name).write_bytes(flipped((copy / name).read_bytes(), 100))
    with pytest.raises(Unavailable):
        await verify_proofs(copy, [kzg_proof.shown], allow_test_srs=True)


async def test_a_missing_profile_is_our_fault(kzg_proof, tmp_path):
    with pytest.raises(Unavailable, match="verified"):
        await verify_proofs(tmp_path / "none", [kzg_proof.shown], allow_test_srs=True)


async def test_a_worker_over_its_time_is_ended_and_leaves_nothing(kzg_profile, tmp_path):
    job = prover_job.ProveJob(str(kzg_profile), VECTOR)
    with pytest.raises(Unavailable, match="longer than"):
        await run_worker(job, WorkerSettings(timeout_seconds=0.05, scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_a_worker_leaves_no_witness(kzg_proof, tmp_path):
    job = prover_job.CommitJob(str(kzg_proof.directory), (VECTOR,))
    await run_worker(job, WorkerSettings(timeout_seconds=60, scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_two_forms_of_a_proof_in_ezkls_file_must_agree():
    good = write_ezkl_proof(b"\x01\x02", ["00"])
    assert read_ezkl_proof(good) == (b"\x01\x02", ("00",))
    for bad in (
        good.replace(b"0x0102", b"0x0103"),
        good.replace(b"23.0.5", b"22.3.0"),
        good.replace(b'"proof"', b'"prof"'),
        b"{}",
        b"[",
    ):
        with pytest.raises(ProofInvalid):
            read_ezkl_proof(bad)


def envelope_for(made, manifest) -> ProofEnvelope:
    return ProofEnvelope(
        profile_id=manifest.profile_id,
        ezkl="23.0.5",
        srs_kind="test",
        srs_sha256=manifest.srs_sha256,
        vk_sha256=manifest.vk_sha256,
        chain_id=CONTEXT.chain_id,
        marketplace=CONTEXT.marketplace,
        job_id=CONTEXT.job_id,
        host=CONTEXT.host,
        model_id=CONTEXT.model_id,
        model_sha256=bytes(32),
        interval=CONTEXT.interval,
        first_token_index=0,
        tokens=made.shown.count,
        previous_commitment=CONTEXT.previous_commitment,
        previous_proof_hash=bytes(32),
        chunks=(made.shown,),
        transcript_cid="blobexample",
        transcript_sha256=bytes(32),
    )


async def test_a_renter_finds_its_own_tokens_proven_and_nothing_else(made):
    envelope = envelope_for(made, read_profile(made.directory))

    async def outcome(envelope, ids=TOKEN_IDS, salts=(SALT,)):
        return await verify_ledger(
            made.directory, envelope, token_ids=ids, salts=salts, allow_test_srs=True
        )

    good = await outcome(envelope)
    assert good.ok, good.reason
    assert "other tokens" in (await outcome(envelope, ids=(1, *TOKEN_IDS[1:]))).reason
    assert "other tokens" in (await outcome(envelope, salts=(bytes(16),))).reason
    assert "were received" in (await outcome(envelope, ids=TOKEN_IDS[1:])).reason
    assert "another place" in (await outcome(altered(envelope, job_id=8))).reason
    for change in (
        {"profile_id": "00" * 32},
        {"ezkl": "22.3.0"},
        {"srs_kind": "ppot"},
        {"srs_sha256": "00" * 32},
        {"vk_sha256": "00" * 32},
    ):
        assert "envelope is for" in (await outcome(altered(envelope, **change))).reason


def test_chunks_of_one_interval_are_chained():
    ids = tuple(range(300))
    first, second = chunk_ids(ids)
    after = following(CONTEXT, count=len(first), commitment=b"\x01" * 32)
    assert context_limbs(after) != context_limbs(dataclass_replace(CONTEXT, first_token_index=240))
    assert len(second) == 60
