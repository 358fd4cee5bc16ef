"""A sealed claim proves, names and hides exactly the claimed tokens."""

import hashlib
from dataclasses import replace

import msgspec
import pytest

from nodeapp.chain.sealing import Sealer
from nodeapp.core.errors import Corrupt, InvalidRequest, Unavailable
from nodeapp.core.session import (
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    TokensProduced,
)
from nodeapp.core.transitions import apply
from nodeapp.evm.accounts import new_wallet
from nodeapp.security.sealed import open_sealed
from nodeapp.security.wallet import verify_digest
from nodeapp.wire.proof_envelope import (
    ReceiptEnvelope,
    check_ledger,
    check_receipt,
    decode_envelope,
    last_link,
    proof_hash,
    signing_digest,
)
from nodeapp.wire.signed import envelope_digest
from nodeapp.wire.transcript import decode_transcript
from tests.fakes.clock import FakeClock
from tests.fakes.paid_session import (
    JOB,
    RENTER_KEY,
    RENTER_SECRET,
    SEPARATOR,
    claim_of,
    new_session,
    request_id,
    running_hash,
)
from tests.fakes.sealing import FakeContracts, FakeProver, FakeStorage

IDS = tuple(range(1000, 1300))
SALTS = (b"s" * 16, b"t" * 16)


def paid_session():
    session = new_session()
    for change in (
        RenterAuthenticated(JOB, RENTER_KEY),
        RequestAuthorised(JOB, request_id(1), 500, b"sealed prompt"),
        TokensProduced(JOB, request_id(1), (*IDS, 9, 9)),
        RenterSentReceipt(JOB, 300, running_hash(IDS), b"r" * 65),
    ):
        session = apply(session, change)
    return session


@pytest.fixture
def sealer():
    return Sealer(FakeProver(), FakeStorage(), new_wallet(), FakeContracts())


def claim(session, tokens=300):
    return msgspec.structs.replace(claim_of(session, tokens), salts=SALTS)


async def test_the_envelope_is_stored_signed_and_hashed_for_the_chain(sealer):
    session = paid_session()
    sealed = await sealer.seal(session, claim(session))
    stored = sealer.storage.blobs[sealed.proof_cid]
    envelope = decode_envelope(stored)
    check_ledger(envelope)
    assert sealed.proof_hash == proof_hash(stored)
    assert (envelope.tokens, envelope.job_id, envelope.first_token_index) == (300, JOB, 0)
    assert (sealed.proofs, sealed.last_commitment) == (2, last_link(envelope))
    assert (sealed.proof_bytes, sealed.prove_cpu_seconds) == (400, 3.0)
    assert_signed(envelope, sealer)


def assert_signed(envelope, sealer):
    digest = envelope_digest(SEPARATOR, signing_digest(envelope))
    verify_digest(digest, envelope.host_signature, sealer.signer.address)


async def test_the_transcript_opens_with_the_renters_key_only(sealer):
    session = paid_session()
    sealed = await sealer.seal(session, claim(session))
    box = sealer.storage.blobs[sealed.transcript_cid]
    envelope = decode_envelope(sealer.storage.blobs[sealed.proof_cid])
    assert envelope.transcript_sha256 == hashlib.sha256(box).digest()
    transcript = decode_transcript(open_sealed(box, RENTER_SECRET))
    assert (transcript.token_ids, transcript.salts) == (IDS, SALTS)
    assert [prompt.sealed for prompt in transcript.prompts] == [b"sealed prompt"]
    assert (transcript.receipt_tokens, transcript.receipt_signature) == (300, b"r" * 65)
    with pytest.raises(InvalidRequest):
        open_sealed(box, b"\x42" * 32)


async def test_sealing_again_asks_the_prover_the_same_question(sealer):
    session = paid_session()
    sealer.storage.is_down = True
    with pytest.raises(Unavailable):
        await sealer.seal(session, claim(session))
    sealer.storage.is_down = False
    await sealer.seal(session, claim(session))
    first, second = sealer.prover.asked
    assert first == second
    assert first.token_ids == IDS


async def test_a_prover_that_counts_otherwise_is_never_believed(sealer):
    session = paid_session()
    sealer.prover.leaves_out = 1
    with pytest.raises((Corrupt, InvalidRequest)):
        await sealer.seal(session, claim(session))
    assert not any(b"host_signature" in blob for blob in sealer.storage.blobs.values())


def policy_sealer(policy, clock=None):
    return Sealer(
        FakeProver(),
        FakeStorage(),
        new_wallet(),
        FakeContracts(),
        policy=policy,
        patience_seconds=60.0,
        clock=clock or FakeClock(),
    )


def check_unproven(sealer, session, sealed, reason):
    stored = sealer.storage.blobs[sealed.proof_cid]
    envelope = decode_envelope(stored)
    assert isinstance(envelope, ReceiptEnvelope)
    assert (envelope.no_proof, envelope.tokens, envelope.job_id) == (reason, 300, JOB)
    check_receipt(envelope, IDS, SALTS)
    assert envelope.receipt_tokens == session.acknowledged
    assert envelope.receipt_sha256 == hashlib.sha256(session.receipt_signature).digest()
    assert sealed.proof_hash == proof_hash(stored)
    assert sealed.last_commitment == last_link(envelope)
    assert (sealed.proofs, sealed.proof_bytes, sealed.prove_cpu_seconds) == (0, 0, 0)
    assert_signed(envelope, sealer)
    box = sealer.storage.blobs[sealed.transcript_cid]
    transcript = decode_transcript(open_sealed(box, RENTER_SECRET))
    assert (transcript.token_ids, transcript.receipt_signature) == (IDS, b"r" * 65)


async def test_with_proofs_off_the_prover_is_never_asked():
    sealer, session = policy_sealer("off"), paid_session()
    sealed = await sealer.seal(session, claim(session))
    check_unproven(sealer, session, sealed, "off")
    assert sealer.prover.asked == []


async def test_a_required_proof_holds_the_claim_up_for_as_long_as_it_takes():
    clock = FakeClock()
    sealer, session = policy_sealer("required", clock), paid_session()
    sealer.prover.is_down = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await sealer.seal(session, claim(session))
        clock.now += 10_000
    assert sealer.storage.blobs == {}
    sealer.prover.is_down = False
    assert (await sealer.seal(session, claim(session))).proofs == 2


async def test_best_effort_waits_for_a_prover_and_then_claims_without_it():
    clock = FakeClock()
    sealer, session = policy_sealer("best_effort", clock), paid_session()
    sealer.prover.is_down = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await sealer.seal(session, claim(session))
        clock.now += 20
    sealed = await sealer.seal(session, claim(session))
    check_unproven(sealer, session, sealed, "prover_unavailable")


async def test_best_effort_proves_when_the_prover_comes_back_in_time():
    clock = FakeClock()
    sealer, session = policy_sealer("best_effort", clock), paid_session()
    sealer.prover.is_down = True
    with pytest.raises(Unavailable):
        await sealer.seal(session, claim(session))
    clock.now += 59
    sealer.prover.is_down = False
    assert (await sealer.seal(session, claim(session))).proofs == 2
    # The next claim has its own patience.
    sealer.prover.is_down = True
    later = msgspec.structs.replace(claim(session), interval=1)
    clock.now += 1000
    with pytest.raises(Unavailable):
        await sealer.seal(session, later)


async def test_patience_leaves_time_to_claim_before_the_session_can_be_timed_out():
    clock = FakeClock()
    sealer = replace(policy_sealer("best_effort", clock), patience_seconds=3600.0)
    session = paid_session()
    sealer.prover.is_down = True
    with pytest.raises(Unavailable):
        await sealer.seal(session, claim(session))
    clock.now += session.terms.proof_timeout_seconds / 4
    sealed = await sealer.seal(session, claim(session))
    check_unproven(sealer, session, sealed, "prover_unavailable")


async def test_a_lying_prover_is_not_a_missing_one():
    clock = FakeClock()
    sealer, session = policy_sealer("best_effort", clock), paid_session()
    sealer.prover.leaves_out = 1
    for _ in range(2):
        with pytest.raises((Corrupt, InvalidRequest)):
            await sealer.seal(session, claim(session))
        clock.now += 10_000


async def test_two_claims_without_a_proof_never_share_a_hash():
    sealer, session = policy_sealer("off"), paid_session()
    first = await sealer.seal(session, claim(session))
    salted = msgspec.structs.replace(claim(session), salts=(b"u" * 16, b"v" * 16))
    assert (await sealer.seal(session, salted)).proof_hash != first.proof_hash
